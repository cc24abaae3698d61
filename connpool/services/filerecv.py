"""
C{twistd filerecv}: receive files.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from connpool.services.credentials import CredentialOptions
from connpool.services.filereceiver import DEFAULT_LISTEN, FileReceiver, digestsOf
from connpool.services.options import (
    AccessOptions,
    asCount,
    asMode,
    asNetworks,
    asSeconds,
    asSize,
    defaultOf,
)
from connpool.services.programs import asProgram
from connpool.services.status import StatusOptions, observed
from connpool.services.thirdparty import makeListener, makeStore
from connpool.services.web import WebOptions
from connpool.transfer.names import PROFILES
from connpool.transfer.receive.policy import Policy
from connpool.transfer.records import IF_EXISTS

__all__ = ["DEFAULT_DIRECTORY", "FileReceiver", "Options", "makeService"]

#: The only directory that is created for the operator.
DEFAULT_DIRECTORY = "received"


class Options(StatusOptions, WebOptions, CredentialOptions, AccessOptions):
    pluginName = "filerecv"
    synopsis = "[options]"
    longdesc = (
        "Receives files. Without options: on loopback port 8640, into ./received "
        "(the only directory it creates). Try: connpool send FILE"
    )
    defaultListen = DEFAULT_LISTEN

    optParameters = [
        ["directory", None, None, "Existing directory to store files in [default: ./received]"],
        ["store", None, None, "Store files with an installed plugin: NAME or NAME:ARGUMENTS"],
        [
            "if-exists",
            None,
            defaultOf(Policy, "ifExists"),
            "When a name is taken: rename, replace, refuse or skip",
        ],
        [
            "names",
            None,
            defaultOf(Policy, "names"),
            "Names taken: portable (also to Windows) or posix",
        ],
        [
            "digests",
            None,
            defaultOf(FileReceiver, "digests"),
            "Block digests, preferred first; also: xxh3",
        ],
        [
            "classic-suffix",
            None,
            defaultOf(FileReceiver, "classicSuffix"),
            "Appended to the name of what came by the classic protocol",
        ],
        ["max-file-size", None, None, "Largest file taken: bytes, or with K, M, G, T"],
        ["quota", None, None, "Bytes that one sender's unfinished transfers may take"],
        ["min-free", None, None, "Bytes of the disk never used [default: 1G or 5 %, the smaller]"],
        [
            "file-mode",
            None,
            defaultOf(FileReceiver, "fileMode", "04o"),
            "Permissions of received files, octal",
        ],
        [
            "dir-mode",
            None,
            defaultOf(FileReceiver, "dirMode", "04o"),
            "Permissions of directories made for them, octal",
        ],
        [
            "keep-partials",
            None,
            defaultOf(FileReceiver, "keepPartials"),
            "Seconds that an interrupted transfer can be resumed",
        ],
        [
            "before-publish",
            None,
            None,
            "Program that is asked before a file is published, with its content on stdin",
        ],
        [
            "judge-timeout",
            None,
            defaultOf(FileReceiver, "judgeTimeout"),
            "Seconds that --before-publish may take for a file",
        ],
        ["on-received", None, None, "Program to run for every file, with its receipt on stdin"],
        [
            "idle-timeout",
            None,
            defaultOf(Policy, "idleTimeout"),
            "Seconds without a byte that end a transfer",
        ],
        [
            "min-rate",
            None,
            defaultOf(Policy, "minimumRate"),
            "Bytes/s a sender must keep up, 0 for none",
        ],
        ["max-rate", None, None, "Bytes/s received at most, all transfers together"],
        ["max-time", None, None, "Seconds that one transfer may take"],
        ["max-transfers", None, None, "Transfers at once [default: as many as connections]"],
        ["max-bytes-per-day", None, None, "Bytes received in any 24 hours"],
        ["max-files-per-day", None, None, "Files stored in any 24 hours"],
        [
            "drain-timeout",
            None,
            defaultOf(FileReceiver, "drainTimeout"),
            "Seconds that a stop waits for transfers to end",
        ],
        ["name", None, defaultOf(FileReceiver, "name"), "Name in logs and metrics"],
    ]

    optFlags = [
        ["no-compression", None, "Take no compressed content"],
        ["no-dotfiles", None, "Refuse names with a part that begins with a dot"],
        ["keep-exec", None, "Keep the exec bit of the sender's file"],
    ]

    compData = usage.Completions(
        optActions={
            "directory": usage.CompleteDirs(),
            "if-exists": usage.CompleteList(list(IF_EXISTS)),
            "names": usage.CompleteList(list(PROFILES)),
        }
    )

    def opt_classic_from(self, network: str) -> None:
        """
        Take classic from this network, not only from loopback (repeatable).
        """
        self.collect("classic-from", network)

    def opt_listener(self, listener: str) -> None:
        """
        Tell an installed plugin about every file: NAME[:ARGUMENTS] (repeatable).
        """
        self.collect("listener", listener)

    def postOptions(self) -> None:
        super().postOptions()
        self.setdefault("listener", [])
        self.convert("listener", lambda texts: [makeListener(text) for text in texts])
        self.setdefault("classic-from", [])
        self.convert("classic-from", asNetworks)
        if self["store"] is not None:
            if self["directory"] is not None:
                raise usage.UsageError("--directory is about the local store; not with --store")
            self.convert("store", makeStore)
        self.convert("digests", lambda text: digestsOf(text.split(",")))
        for name, parse in (
            ("idle-timeout", asSeconds),
            ("judge-timeout", asSeconds),
            ("drain-timeout", asSeconds),
            ("keep-partials", asSeconds),
            ("min-rate", asSize),
            ("file-mode", asMode),
            ("dir-mode", asMode),
        ):
            self.convert(name, parse)
        for name, parse in (
            ("max-file-size", asSize),
            ("max-rate", asSize),
            ("max-bytes-per-day", asSize),
            ("quota", asSize),
            ("min-free", asSize),
            ("max-transfers", asCount),
            ("max-files-per-day", asCount),
            ("max-time", asSeconds),
        ):
            if self[name] is not None:
                self.convert(name, parse)
        if self["before-publish"] is not None:
            self.convert("before-publish", asProgram)
        if self["on-received"] is not None:
            self.convert("on-received", asProgram)
        self.createDirectory = self["store"] is None and self["directory"] is None
        if self.createDirectory:
            self["directory"] = DEFAULT_DIRECTORY
        self.attempt(self.make)

    def make(self, reactor: Any) -> FileReceiver:
        return FileReceiver(
            reactor,
            self["directory"],
            listen=self["listen"],
            access=self.access,
            policy=Policy(
                maxFileSize=self["max-file-size"],
                maxTransfers=self["max-transfers"],
                maxBytes=self["max-bytes-per-day"],
                maxFiles=self["max-files-per-day"],
                maxTime=self["max-time"],
                maxRate=self["max-rate"] or None,
                ifExists=self["if-exists"],
                names=self["names"],
                dotfiles=not self["no-dotfiles"],
                compression=not self["no-compression"],
                idleTimeout=self["idle-timeout"],
                minimumRate=self["min-rate"],
            ),
            checkers=self["auth"],
            identities=self["identities"],
            listeners=self["listener"],
            onReceived=self["on-received"],
            beforePublish=self["before-publish"],
            judgeTimeout=self["judge-timeout"],
            classicFrom=self["classic-from"],
            classicSuffix=self["classic-suffix"],
            digests=self["digests"],
            drainTimeout=self["drain-timeout"],
            name=self["name"],
            createDirectory=self.createDirectory,
            fileMode=self["file-mode"],
            dirMode=self["dir-mode"],
            keepExec=bool(self["keep-exec"]),
            quota=self["quota"],
            minFree=self["min-free"],
            keepPartials=self["keep-partials"],
            store=self["store"],
            **self.webKeywords,
        )

    def check(self) -> None:
        if self["store"] is None and not self.createDirectory:
            self.checkDirectory("directory")


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    Make the service of a command line.

    @param options: parsed.
    @param reactor: the global one unless given.
    """
    if reactor is None:
        from twisted.internet import reactor
    return observed(options, options.make(reactor), reactor)
