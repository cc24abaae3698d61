"""
C{twistd filesend}: forward what settles in a folder.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from connpool.services.filesender import FileSender
from connpool.services.options import (
    asCount,
    asDestination,
    asSeconds,
    defaultOf,
    readRate,
)
from connpool.services.status import StatusOptions, observed
from connpool.transfer.send.choosing import Choice
from connpool.transfer.send.credentials import readCredentials

__all__ = ["FileSender", "Options", "makeService"]


class Options(StatusOptions):
    pluginName = "filesend"
    synopsis = "--directory OUTBOX --to HOST:PORT [options]"
    longdesc = (
        "Watches a folder and sends the files that nobody writes to any more. A file is removed "
        "when the receiver has stored it durably."
    )

    optFlags = [
        [
            "trust-settled",
            None,
            "Remove files also where nobody can tell whether they are still written to",
        ],
        ["send-temporary", None, "Send files whose names look temporary, such as x.part, too"],
        ["keep-directories", None, "Keep directories that are empty once their files were sent"],
    ]

    optParameters = [
        ["directory", None, None, "Existing folder to watch"],
        ["to", None, None, "The receiver: HOST:PORT or a client endpoint description"],
        [
            "ca",
            None,
            None,
            "PEM file of what to trust for tls: [default: the system's authorities]",
        ],
        ["credentials", None, None, "File with USER:PASSWORD [default: CONNPOOL_CREDENTIALS]"],
        [
            "settle",
            None,
            defaultOf(FileSender, "settle"),
            "Seconds without a change before a file is sent",
        ],
        [
            "interval",
            None,
            defaultOf(FileSender, "interval"),
            "Seconds between two looks at the folder",
        ],
        ["jobs", None, defaultOf(FileSender, "jobs"), "Connections at once"],
        [
            "attempts",
            None,
            defaultOf(FileSender, "attempts"),
            "Refusals of a file before it is set aside",
        ],
        [
            "compress",
            None,
            defaultOf(FileSender, "compress"),
            "Compress what shrinks: auto (where that is faster), always or never",
        ],
        [
            "bwlimit",
            None,
            defaultOf(FileSender, "bwlimit"),
            "Bytes/s sent at most, such as 2M, or a file (its path) with that, read at each SIGHUP",
        ],
        [
            "move-to",
            None,
            None,
            "Move sent files to this directory, on any file system, instead of removing them",
        ],
        [
            "writer-warning",
            None,
            defaultOf(FileSender, "writerWarning"),
            "Seconds that a file may be open for writing before readiness says so",
        ],
        ["name", None, defaultOf(FileSender, "name"), "Name in logs and metrics"],
    ]

    compData = usage.Completions(
        optActions={
            "directory": usage.CompleteDirs(),
            "move-to": usage.CompleteDirs(),
            "ca": usage.CompleteFiles("*.pem"),
        }
    )

    def opt_ignore(self, pattern: str) -> None:
        """
        Leave what fits alone: a pattern as in .gitignore, such as "*.new", "drafts/"
        or "/top"; "!keep.new" after it takes one out again (repeatable).
        """
        self.collect("ignore", pattern)

    def check(self) -> None:
        self.checkDirectory("directory")
        if self["move-to"] is not None:
            self.checkDirectory("move-to")

    def postOptions(self) -> None:
        super().postOptions()
        for name in ("directory", "to"):
            if not self[name]:
                raise usage.UsageError(f"--{name} is missing")
        for name, parse in (
            ("to", lambda text: asDestination(text, self["ca"])),
            ("settle", asSeconds),
            ("interval", asSeconds),
            ("writer-warning", asSeconds),
            ("jobs", asCount),
            ("attempts", asCount),
        ):
            self.convert(name, parse)
        self.setdefault("ignore", [])
        self.convert("ignore", lambda patterns: patterns if Choice.ignoring(patterns) else ())
        self.convert("bwlimit", _asLimit)
        if self["compress"] not in {"auto", "always", "never"}:
            raise usage.UsageError("--compress: auto, always or never is asked for")
        self.convert("credentials", lambda path: readCredentials(path, os.environ))


def _asLimit(text: str) -> str:
    readRate(text)
    return text


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    Make the service of a command line.

    @param options: parsed.
    @param reactor: the global one unless given.
    """
    if reactor is None:
        from twisted.internet import reactor
    sender = FileSender(
        reactor,
        options["directory"],
        options["to"],
        ca=options["ca"],
        credentials=options["credentials"],
        moveTo=options["move-to"],
        settle=options["settle"],
        interval=options["interval"],
        jobs=options["jobs"],
        attempts=options["attempts"],
        ignore=options["ignore"],
        trustSettled=bool(options["trust-settled"]),
        sendTemporary=bool(options["send-temporary"]),
        keepDirectories=bool(options["keep-directories"]),
        writerWarning=options["writer-warning"],
        bwlimit=options["bwlimit"],
        compress=options["compress"],
        name=options["name"],
    )
    return observed(options, sender, reactor)
