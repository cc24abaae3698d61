"""
C{twistd filerecv}: receive files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python import usage
from zope.interface import implementer

from connpool.addresses import clientOf
from connpool.errors import Busy, Forbidden, NameRefused, StartFailed, Unsupported
from connpool.interfaces import (
    IFileStore,
    ILiveTransfers,
    IReadiness,
    IRecentTransfers,
    IStatsSource,
)
from connpool.services.credentials import CredentialOptions, authenticatorOf
from connpool.services.hints import sendHint, sendHintElsewhere
from connpool.services.listening import ListeningService, placeOf
from connpool.services.onreceived import OnReceived, asProgram
from connpool.services.options import (
    AccessOptions,
    asCount,
    asMode,
    asNetworks,
    asSeconds,
    asSize,
)
from connpool.services.startfailure import failStart
from connpool.services.status import StatusOptions, observed
from connpool.services.thirdparty import makeListener, makeStore
from connpool.transfer.digests import digestNamed
from connpool.transfer.names import PROFILES, RelativeName
from connpool.transfer.receive.classic import ClassicReceiver, ClassicRefusal
from connpool.transfer.receive.policy import Policy, TransferStats
from connpool.transfer.receive.reception import Reception
from connpool.transfer.receive.session import NativeReceiver
from connpool.transfer.receive.sniffer import Choice, SnifferFactory
from connpool.transfer.records import IF_EXISTS, EndedTransfer, LiveTransfer
from connpool.transfer.stores import LocalStore
from connpool.transfer.wire.frames import PREAMBLE
from connpool.transfer.wire.handshake import refusal
from connpool.transfer.wire.link import Link

__all__ = ["DEFAULT_DIRECTORY", "FileReceiverService", "Options", "makeService"]

#: The only directory that is created for the operator.
DEFAULT_DIRECTORY = "received"

#: What refused connections are told.
SHUT_OUT = Forbidden("this address may not send here; see --allow and --deny of the receiver")
CROWDED = Busy("the receiver has as many connections as it takes; try later, or use fewer --jobs")

#: What only the local store understands.
_LOCAL = (
    *("directory", "file-mode", "dir-mode", "keep-exec"),
    *("quota", "min-free", "keep-partials", "on-received"),
)


class Options(StatusOptions, CredentialOptions, AccessOptions):
    pluginName = "filerecv"
    synopsis = "[options]"
    longdesc = (
        "Receives files. Without options: on loopback port 8640, into ./received "
        "(the only directory it creates). Try: connpool send FILE"
    )
    defaultListen = ("tcp:8640:interface=127.0.0.1",)

    optParameters = [
        ["directory", None, None, "Existing directory to store files in [default: ./received]"],
        ["store", None, None, "Store files with an installed plugin: NAME or NAME:ARGUMENTS"],
        ["if-exists", None, "rename", "When a name is taken: rename, replace, refuse or skip"],
        ["names", None, "portable", "Names taken: portable (also to Windows) or posix"],
        ["digests", None, "blake3,sha256", "Block digests, preferred first; also: xxh3"],
        ["classic-suffix", None, "", "Appended to the name of what came by the classic protocol"],
        ["max-file-size", None, None, "Largest file taken: bytes, or with K, M, G, T"],
        ["quota", None, None, "Bytes that one sender's unfinished transfers may take"],
        ["min-free", None, None, "Bytes of the disk never used [default: 1G or 5 %, the smaller]"],
        ["file-mode", None, "0640", "Permissions of received files, octal"],
        ["dir-mode", None, "0750", "Permissions of directories made for them, octal"],
        ["keep-partials", None, "604800", "Seconds that an interrupted transfer can be resumed"],
        ["on-received", None, None, "Program to run for every file, with its receipt on stdin"],
        ["idle-timeout", None, "60", "Seconds without a byte that end a transfer"],
        ["min-rate", None, "1024", "Bytes/s a sender must keep up, 0 for none"],
        ["max-rate", None, None, "Bytes/s received at most, all transfers together"],
        ["max-time", None, None, "Seconds that one transfer may take"],
        ["max-transfers", None, None, "Transfers at once [default: as many as connections]"],
        ["max-bytes-per-day", None, None, "Bytes received in any 24 hours"],
        ["max-files-per-day", None, None, "Files stored in any 24 hours"],
        ["drain-timeout", None, "60", "Seconds that a stop waits for transfers to end"],
        ["name", None, "filerecv", "Name in logs and metrics"],
    ]

    optFlags = [
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
            self._chooseStore()
        self.choice("if-exists", IF_EXISTS)
        self.choice("names", PROFILES)
        self.convert("digests", _digests)
        for name, parse in (
            ("idle-timeout", asSeconds),
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
        if self["on-received"] is not None:
            self.convert("on-received", asProgram)
        self.createDirectory = self["directory"] is None
        self["directory"] = self["directory"] or DEFAULT_DIRECTORY
        self._checkSuffix()
        self._checkExposure()

    def _checkExposure(self) -> None:
        """
        Refuse to start a receiver that is open to everybody by accident.
        """
        certified = all(listen.certified for listen in self["listen"])
        if self["identities"] is not None and not (self["auth"] or certified):
            raise usage.UsageError(
                "--identities is about who logs in; ask for that with --auth, or for "
                "certificates with secured:…:trustRoots=…"
            )
        for listen in self["listen"]:
            if listen.local:
                continue
            if self["auth"] and not listen.certified and not listen.encrypted:
                raise usage.UsageError(
                    f"--listen {listen.description}: the passwords of --auth would cross the "
                    "network in clear; write secured:… or ssl:…"
                )
            if not (self["allow"] or self["auth"] or listen.certified):
                raise usage.UsageError(
                    f"--listen {listen.description} can be reached from other machines; "
                    "say who may send with --allow CIDR (or --allow any), --auth or trustRoots=, "
                    "or add interface=127.0.0.1"
                )
        everybody = any(not net.prefixlen for net in self["allow"].networks)
        if (
            everybody
            and self["store"] is None
            and self["quota"] is None
            and not (self["auth"] or certified)
        ):
            raise usage.UsageError(
                "--allow any lets everybody fill the disk; say how much one sender's unfinished "
                "transfers may take with --quota SIZE"
            )

    def check(self) -> None:
        if self["store"] is None and not self.createDirectory:
            self.checkDirectory("directory")

    def _chooseStore(self) -> None:
        for name in _LOCAL:
            if self[name] != self.defaults[name]:
                raise usage.UsageError(f"--{name} is about the local store; not with --store")
        # without the arguments, which are nobody else's business
        self.storeName = self["store"].partition(":")[0]
        self.convert("store", makeStore)

    def _checkSuffix(self) -> None:
        try:
            if "/" in self["classic-suffix"]:
                raise NameRefused("it contains a slash")
            RelativeName.parse("x" + self["classic-suffix"])
        except NameRefused as e:
            raise usage.UsageError(f"--classic-suffix: {e}") from None


def _digests(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    try:
        for name in names:
            digestNamed(name)
    except Unsupported as e:
        raise ValueError(str(e)) from None
    return names


@implementer(IStatsSource, ILiveTransfers, IRecentTransfers, IReadiness)
class FileReceiverService(MultiService):
    """
    A reception behind its listeners.

    @ivar reception: what it receives with; there once the service has started.
    @ivar listening: the listeners, with C{getHost()}.
    """

    kind = "transfer"
    _log = Logger()

    def __init__(self, reactor: Any, options: Options) -> None:
        super().__init__()
        self.name = options["name"]
        self._reactor = reactor
        self._options = options
        self._authenticator = authenticatorOf(options, reactor)
        self._hook: OnReceived | None = None
        self._store: IFileStore | None = None
        self.reception: Reception | None = None
        self._receiver: NativeReceiver | None = None
        self.listening = ListeningService(
            reactor,
            options["listen"],
            SnifferFactory(reactor, [Choice(PREAMBLE, self._native), Choice(b"", self._classic)]),
            access=options.access,
            drainTimeout=options["drain-timeout"],
            name=self.name,
            answers={"address": refusal(SHUT_OUT), "limit": refusal(CROWDED)},
        )
        self.listening.setServiceParent(self)

    def startService(self) -> None:
        # not earlier: what the store makes belongs to the user we run as
        self._store = store = self._openStore()
        self._receiver = None
        options = self._options
        self.reception = Reception(
            store,
            self._reactor,
            Policy(
                maxFileSize=options["max-file-size"],
                maxTransfers=options["max-transfers"] or options["max-connections"],
                maxBytes=options["max-bytes-per-day"],
                maxFiles=options["max-files-per-day"],
                maxTime=options["max-time"],
                maxRate=options["max-rate"] or None,
                ifExists=options["if-exists"],
                names=options["names"],
                dotfiles=not options["no-dotfiles"],
                idleTimeout=options["idle-timeout"],
                minimumRate=options["min-rate"],
            ),
            listeners=[*options["listener"], *self._hooks(store)],
            name=options["name"],
        )
        super().startService()
        hosts = self.listening.getHosts()
        hint, *others = [
            sendHint(listen, host, options.access, credentials=bool(options["auth"]))
            for listen, host in zip(options["listen"], hosts, strict=True)
        ]
        self._log.info(
            "{name} listens on {places}, files go to {where}; send one with: {hint}",
            name=self.name,
            places=", ".join(map(placeOf, hosts)),
            where=f"the store {options.storeName}"
            if options["store"]
            else os.path.abspath(options["directory"]),
            hint=hint,
        )
        for other in others:
            self._log.info("{name}: or with: {hint}", name=self.name, hint=other)
        for listen, host in zip(options["listen"], hosts, strict=True):
            elsewhere = sendHintElsewhere(listen, host, credentials=bool(options["auth"]))
            if elsewhere is not None:
                self._log.info("{name}: elsewhere: {hint}", name=self.name, hint=elsewhere)

    def _hooks(self, store: IFileStore) -> list[OnReceived]:
        program = self._options["on-received"]
        if program is None:
            return []
        assert isinstance(store, LocalStore), "checked in the options"
        try:
            outbox = store.receivedOutbox()
        except StartFailed as e:
            failStart(f"{self.name}: {e}")
        self._hook = OnReceived(self._reactor, program, self._options["directory"], outbox)
        self._reactor.callWhenRunning(self._hook.look)
        return [self._hook]

    def _openStore(self) -> IFileStore:
        options = self._options
        directory = options["directory"]
        if options["store"] is None and options.createDirectory:
            try:
                os.makedirs(directory, mode=0o750, exist_ok=True)
            except OSError as e:
                failStart(f"{self.name}: cannot make the directory {directory}: {e.strerror}")
        try:
            if options["store"] is not None:
                return options["store"](self._reactor)  # type: ignore[no-any-return]
            return LocalStore(
                self._reactor,
                directory,
                fileMode=options["file-mode"],
                dirMode=options["dir-mode"],
                keepExec=bool(options["keep-exec"]),
                names=options["names"],
                quota=options["quota"],
                minFree=options["min-free"],
                ttl=options["keep-partials"],
            )
        except StartFailed as e:
            failStart(f"{self.name}: {e}")

    async def _stop(self) -> None:
        # its listener's drain lets running transfers end in the store
        await super().stopService()
        if self.reception is not None:
            self.reception.hurry()
        hook, self._hook = self._hook, None
        if hook is not None:
            await hook.stop()
        store, self._store = self._store, None
        if store is not None:
            await store.close()

    def stopService(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stop())

    def _classic(self, transport: Any) -> ClassicReceiver | ClassicRefusal:
        assert self.reception is not None
        client = clientOf(transport)
        # classic has no credentials: where they are asked for, it must be asked for too
        trusted = client.local and self._authenticator is None
        if trusted or client.host in self._options["classic-from"]:
            return ClassicReceiver(self._reactor, self.reception, self._options["classic-suffix"])
        return ClassicRefusal()

    def _native(self, transport: Any) -> Link:
        if self._receiver is None:
            assert self.reception is not None
            self._receiver = NativeReceiver(
                self._reactor, self.reception, self._options["digests"], self._authenticator
            )
        return self._receiver.build(transport)

    def stats(self) -> TransferStats:
        return TransferStats() if self.reception is None else self.reception.stats()

    def liveTransfers(self, limit: int) -> Sequence[LiveTransfer]:
        return () if self.reception is None else self.reception.liveTransfers(limit)

    def recentTransfers(self) -> Sequence[EndedTransfer]:
        return () if self.reception is None else self.reception.recent.latest()

    def trouble(self) -> str | None:
        return None if self._store is None else self._store.trouble()


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    @param options: parsed.
    @param reactor: the global one unless given.
    """
    if reactor is None:
        from twisted.internet import reactor
    return observed(options, FileReceiverService(reactor, options), reactor)
