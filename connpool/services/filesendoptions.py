"""
The options of C{twistd filesend}.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from twisted.python import usage

from connpool.services.options import asCount, asDestination, asSeconds
from connpool.services.status import StatusOptions
from connpool.transfer.send.credentials import readCredentials

__all__ = ["Options"]


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
        ["settle", None, "2", "Seconds without a change before a file is sent"],
        ["interval", None, "5", "Seconds between two looks at the folder"],
        ["jobs", None, "1", "Connections at once"],
        ["attempts", None, "3", "Refusals of a file before it is set aside"],
        ["move-to", None, None, "Move sent files to this directory instead of removing them"],
        [
            "writer-warning",
            None,
            "600",
            "Seconds that a file may be open for writing before readiness says so",
        ],
        ["name", None, "filesend", "Name in logs and metrics"],
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
        Leave files and directories of this name alone: a shell pattern such as
        "*.new" (repeatable).
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
        self.convert("ignore", asPatterns)
        self.convert("credentials", lambda path: readCredentials(path, os.environ))


def asPatterns(texts: Sequence[str]) -> Sequence[str]:
    """
    @raise ValueError: for a pattern that no name fits.
    """
    for text in texts:
        if not text or "/" in text:
            raise ValueError(f"{text!r} is not a pattern of a name; write one such as *.new")
    return texts
