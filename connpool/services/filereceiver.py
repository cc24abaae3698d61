"""
A service that receives files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from http import HTTPStatus
from inspect import signature
from typing import TYPE_CHECKING, Any

import attrs
from twisted.application.service import MultiService
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from zope.interface import implementer

from connpool.addresses import Listen, Networks, clientOf
from connpool.errors import Busy, Forbidden, NameRefused, StartFailed, Unsupported, WrongSetting
from connpool.interfaces import (
    IAuthenticator,
    IFileStore,
    IInspectableStore,
    ILiveTransfers,
    INotingStore,
    IObservedStore,
    IReadableStore,
    IReadiness,
    IRecentTransfers,
    ISharedUploadStore,
    IStatsSource,
    ITransferJudge,
    ITransferListener,
    IUploadStore,
)
from connpool.services.access import Access
from connpool.services.credentials import Authenticator
from connpool.services.hints import curlHint, sendHint, sendHintElsewhere
from connpool.services.listening import ListeningService, ShownSource, placeOf, readListen
from connpool.services.programs import asProgram
from connpool.services.startfailure import failStart
from connpool.services.thirdparty import ChosenStore
from connpool.services.web import WebEntrance
from connpool.transfer.digests import digestNamed
from connpool.transfer.identities import Identities
from connpool.transfer.names import PROFILES, RelativeName
from connpool.transfer.receive.classic import ClassicReceiver, ClassicRefusal
from connpool.transfer.receive.policy import Policy, TransferStats
from connpool.transfer.receive.reception import Reception
from connpool.transfer.receive.session import NativeReceiver
from connpool.transfer.receive.sniffer import Choice, SnifferFactory
from connpool.transfer.records import IF_EXISTS, EndedTransfer, LiveTransfer, StoreSettings
from connpool.transfer.stores import LocalStore
from connpool.transfer.wire.frames import PREAMBLE
from connpool.transfer.wire.handshake import refusal
from connpool.transfer.wire.link import Link

if TYPE_CHECKING:
    from connpool.services.beforepublish import BeforePublish
    from connpool.services.onreceived import OnReceived

__all__ = ["DEFAULT_LISTEN", "FileReceiver", "digestsOf"]

#: What refused connections are told.
SHUT_OUT = Forbidden("this address may not send here; see --allow and --deny of the receiver")
CROWDED = Busy("the receiver has as many connections as it takes; try later, or use fewer --jobs")

#: Where a receiver listens if it is not told otherwise.
DEFAULT_LISTEN = ("tcp:8640:interface=127.0.0.1",)
_SHOWS_NOTHING = (
    "the store {} cannot show a file before it is published (IInspectableStore); leave out "
    "--before-publish and judging listeners"
)


def digestsOf(names: Sequence[str]) -> Sequence[str]:
    """
    Check the names of digests.

    @raise WrongSetting: for one that is not known.
    """
    try:
        for name in names:
            digestNamed(name)
    except Unsupported as e:
        raise WrongSetting(str(e)) from None
    return names


@implementer(IStatsSource, ILiveTransfers, IRecentTransfers, IReadiness)
class FileReceiver(MultiService):
    """
    A reception behind its listeners.

    @ivar reception: what receives; there once the service has started.
    @ivar listening: the listeners, with C{getHost()}.

    @param reactor: also the clock.
    @param directory: the existing directory that files are stored in; L{None} with C{store}.
    @param listen: endpoint descriptions; one that other machines can reach wants
        C{access} with C{allow}, or credentials.
    @param access: the addresses that may connect, and how many at once.
    @param policy: the rules for files, and the limits of all senders together.
        C{maxTransfers} L{None} is as many as connections.
    @param checkers: of passwords, L{ICredentialsChecker}s for C{IUsernamePassword}.
    @param identities: the table of those that may send, where to and how much.
    @param listeners: told about every file, L{ITransferListener}s.
    @param beforePublish: path of a program that is asked before a file is published.
    @param judgeTimeout: seconds that it may take.
    @param onReceived: path of a program that is run for every file.
    @param classicFrom: networks that may send classic; loopback always may.
    @param classicSuffix: appended to the name of what came by classic.
    @param digests: of blocks, the preferred one first.
    @param drainTimeout: seconds that a stop waits for transfers to end.
    @param name: in logs and metrics.
    @param createDirectory: make C{directory} when the service starts.
    @param fileMode: permissions of received files.
    @param dirMode: permissions of directories made for them.
    @param keepExec: keep the exec bit of the sender's file.
    @param quota: bytes that one sender's unfinished transfers may take.
    @param minFree: bytes of the disk never used; L{None} for 1 GiB or 5 %, the smaller.
    @param keepPartials: seconds that an interrupted transfer can be resumed.
    @param store: opens another store than the directory, with the reactor and the settings;
        what follows C{name} above is about the directory, and not taken with it unless the
        store heeds it.
    @param web: take HTTP from everywhere that may connect; C{False} from nowhere; L{None}
        from clients that are connected directly on this machine.
    @param webHosts: names under which HTTP clients ask for the receiver, beside addresses and
        this machine's own names.
    @param webOrigins: origins of web sites whose pages may send; C{*} for all, with C{checkers}.
    @param webUrl: URL of the receiver as HTTP clients see it, behind a proxy.
    @param webDownload: give files to identities that may read by HTTP, too.
    @param webSha256: compute the SHA-256 of every file that comes by HTTP.
    @raise WrongSetting: for values that do not go together, or an open door; one line.
    @raise AddressError: for a description or network that is none; one line.
    @raise Unsupported: for digests that are none; one line.
    """

    kind = "transfer"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        directory: str | os.PathLike[str] | None = None,
        *,
        listen: Sequence[Listen | str] = DEFAULT_LISTEN,
        access: Access | None = None,
        policy: Policy | None = None,
        checkers: Sequence[ICredentialsChecker] = (),
        identities: Identities | None = None,
        listeners: Sequence[ITransferListener] = (),
        onReceived: str | None = None,
        beforePublish: str | None = None,
        judgeTimeout: float = 300.0,
        classicFrom: Networks | None = None,
        classicSuffix: str = "",
        digests: Sequence[str] = ("blake3", "sha256"),
        drainTimeout: float = 60.0,
        name: str = "filerecv",
        createDirectory: bool = False,
        fileMode: int = 0o640,
        dirMode: int = 0o750,
        keepExec: bool = False,
        quota: int | None = None,
        minFree: int | None = None,
        keepPartials: float = 604800.0,
        store: ChosenStore | Callable[[Any, StoreSettings], IFileStore] | None = None,
        web: bool | None = None,
        webHosts: Sequence[str] = (),
        webOrigins: Sequence[str] = (),
        webUrl: str | None = None,
        webSha256: bool = False,
        webDownload: bool = False,
    ) -> None:
        super().__init__()
        self.name: str = name
        self._reactor = reactor
        self._directory = None if directory is None else os.fspath(directory)
        self._createDirectory = createDirectory
        self._listens = [readListen(each) for each in listen]
        self._access = access or Access()
        self._policy = policy or Policy()
        if identities is not None:
            self._policy = attrs.evolve(self._policy, reading=identities.reading)
        self._listeners = listeners
        self._classicFrom = classicFrom or Networks()
        self._classicSuffix = classicSuffix
        self._digests = digestsOf(digests)
        self._credentials = bool(checkers)
        if store is not None and not isinstance(store, ChosenStore):
            # it says so itself, once it is open
            store = ChosenStore("given", store, frozenset({"beforePublish"}))
        self._chosen = store
        self._storeName = "" if store is None else store.name
        self._program = None if onReceived is None else asProgram(onReceived)
        self._local: dict[str, Any] = {
            "fileMode": fileMode,
            "dirMode": dirMode,
            "keepExec": keepExec,
            "quota": quota,
            "minFree": minFree,
            "ttl": keepPartials,
        }
        self._judged = beforePublish is not None or any(map(ITransferJudge.providedBy, listeners))
        self._check(identities)
        self._authenticator: IAuthenticator | None = None
        if checkers or identities is not None:
            self._authenticator = Authenticator(reactor, checkers, identities)
        self._hook: OnReceived | None = None
        self._judge: BeforePublish | None = None
        if beforePublish is not None:
            from connpool.services.beforepublish import BeforePublish

            self._judge = BeforePublish(reactor, asProgram(beforePublish), judgeTimeout)
        self._store: IFileStore | None = None
        self._shown: list[ShownSource] = []
        self.reception: Reception | None = None
        self._receiver: NativeReceiver | None = None
        self._web = WebEntrance(
            *(reactor, web, webHosts, webOrigins, webUrl, webSha256, webDownload),
            credentials=self._authenticator is not None,
            reading=self._policy.reading,
        )
        words = self._web.words
        self.listening = ListeningService(
            reactor,
            self._listens,
            SnifferFactory(
                reactor,
                [
                    Choice((PREAMBLE,), self._native),
                    *self._web.choices,
                    Choice((b"",), self._classic),
                ],
            ),
            access=self._access,
            drainTimeout=drainTimeout,
            name=name,
            answers={
                "address": words(refusal(SHUT_OUT), HTTPStatus.FORBIDDEN, SHUT_OUT),
                "limit": words(refusal(CROWDED), HTTPStatus.SERVICE_UNAVAILABLE, CROWDED),
            },
            settle=self._settle,
        )
        self.listening.setServiceParent(self)
        if self._web.choices:
            ShownSource(self._web.counts).setServiceParent(self)

    def _check(self, identities: Identities | None) -> None:
        if (self._directory is None) is (self._chosen is None):
            raise WrongSetting("files go to a directory or to a store; give one of them")
        for option, value, choices in (
            ("if-exists", self._policy.ifExists, IF_EXISTS),
            ("names", self._policy.names, PROFILES),
        ):
            if value not in choices:
                raise WrongSetting(f"--{option}: {value!r} is not one of {', '.join(choices)}")
        self._checkStore()
        try:
            if "/" in self._classicSuffix:
                raise NameRefused("it contains a slash")
            RelativeName.parse("x" + self._classicSuffix)
        except NameRefused as e:
            raise WrongSetting(f"--classic-suffix: {e}") from None
        self._checkExposure(identities)

    def _checkStore(self) -> None:
        if self._chosen is None:
            return
        given = {"keepPartials" if name == "ttl" else name: v for name, v in self._local.items()}
        given["onReceived"] = self._program
        heard = given.keys() - self._chosen.takes
        for name in heard:
            if given[name] != signature(FileReceiver).parameters[name].default:
                option = re.sub("[A-Z]", lambda found: f"-{found[0].lower()}", name)
                raise WrongSetting(f"--{option} is about the local store; not with --store")
        if self._judged and "beforePublish" not in self._chosen.takes:
            raise WrongSetting(_SHOWS_NOTHING.format(self._storeName))

    def _checkExposure(self, identities: Identities | None) -> None:
        """
        Refuse a receiver that is open to everybody by accident.
        """
        allow = self._access.allow
        certified = all(listen.certified for listen in self._listens)
        if identities is not None and not (self._credentials or certified):
            raise WrongSetting(
                "--identities is about who logs in; ask for that with --auth, or for "
                "certificates with secured:…:trustRoots=…"
            )
        for listen in self._listens:
            if listen.local:
                continue
            if self._credentials and not listen.certified and not listen.encrypted:
                raise WrongSetting(
                    f"--listen {listen.description}: the passwords of --auth would cross the "
                    "network in clear; write secured:… or ssl:…"
                )
            if not (allow or self._credentials or listen.certified):
                raise WrongSetting(
                    f"--listen {listen.description} can be reached from other machines; "
                    "say who may send with --allow CIDR (or --allow any), --auth or trustRoots="
                    f"{listen.makeLocal}"
                )
        everybody = any(not net.prefixlen for net in allow.networks)
        if (
            everybody
            and (self._chosen is None or "quota" in self._chosen.takes)
            and self._local["quota"] is None
            and not (self._credentials or certified)
        ):
            raise WrongSetting(
                "--allow any lets everybody fill the disk; say how much one sender's unfinished "
                "transfers may take with --quota SIZE"
            )

    def startService(self) -> None:
        # not earlier: what the store makes belongs to the user we run as
        self._store = store = self._makeStore()
        if self._judged and not IInspectableStore.providedBy(store):
            failStart(f"{self.name}: {_SHOWS_NOTHING.format(self._storeName)}")
        if self._policy.reading and not IReadableStore.providedBy(store):
            failStart(
                f"{self.name}: --identities lets somebody read, which the store {self._storeName} "
                "cannot do (IReadableStore)"
            )
        self._receiver = None
        policy = self._policy
        if policy.maxTransfers is None:
            policy = attrs.evolve(policy, maxTransfers=self._access.maxConnections)
        self.reception = Reception(
            store,
            self._reactor,
            policy,
            listeners=[*self._listeners, *self._hooks(store), *filter(None, [self._judge])],
            name=self.name,
        )
        self._web.start(self.reception, self._authenticator)
        self._shown = [
            ShownSource(each) for each in getattr(IObservedStore(store, None), "sources", ())
        ]
        for each in self._shown:
            each.setServiceParent(self)
        super().startService()
        self._sayWhere()
        if self._web.choices and not IUploadStore.providedBy(store):
            self._log.info(
                "{name}: HTTP takes whole files only, and no uploads that go on in later requests:"
                " the store {store} cannot keep them (IUploadStore)",
                name=self.name,
                store=self._storeName,
            )

    def _sayWhere(self) -> None:
        hosts = self.listening.getHosts()
        hint, *others = [
            sendHint(listen, host, self._access, credentials=self._credentials)
            for listen, host in zip(self._listens, hosts, strict=True)
        ]
        self._log.info(
            "{name} listens on {places}, files go to {where}; send one with: {hint}",
            name=self.name,
            places=", ".join(map(placeOf, hosts)),
            where=f"the store {self._storeName}"
            if self._directory is None
            else os.path.abspath(self._directory),
            hint=hint,
        )
        for other in others:
            self._log.info("{name}: or with: {hint}", name=self.name, hint=other)
        for listen, host in zip(self._listens, hosts, strict=True):
            curl = self._web.opens(listen) and curlHint(
                *(listen, host, self._access), credentials=self._credentials
            )
            if curl:
                self._log.info("{name}: or with: {hint}", name=self.name, hint=curl)
            elsewhere = sendHintElsewhere(listen, host, credentials=self._credentials)
            if elsewhere is not None:
                self._log.info("{name}: elsewhere: {hint}", name=self.name, hint=elsewhere)

    def _hooks(self, store: IFileStore) -> list[OnReceived]:
        if self._program is None:
            return []
        noting: Any = INotingStore(store)
        try:
            outbox = noting.receivedOutbox(self._look)
        except StartFailed as e:
            failStart(f"{self.name}: {e}")
        from connpool.services.onreceived import OnReceived

        self._hook = OnReceived(
            *(self._reactor, self._program, self._directory, outbox, noting.placeOf)
        )
        self._reactor.callWhenRunning(self._hook.look)
        return [self._hook]

    def _look(self) -> None:
        if self._hook is not None:
            self._hook.look()

    def _makeStore(self) -> IFileStore:
        directory = self._directory
        if directory is not None and self._createDirectory:
            try:
                os.makedirs(directory, mode=0o750, exist_ok=True)
            except OSError as e:
                failStart(f"{self.name}: cannot make the directory {directory}: {e.strerror}")
        try:
            if self._chosen is not None:
                quota, keep = self._local["quota"], self._local["ttl"]
                settings = StoreSettings(self._policy.names, quota, keep)
                return self._chosen.opens(self._reactor, settings)
            assert directory is not None
            return LocalStore(self._reactor, directory, names=self._policy.names, **self._local)
        except StartFailed as e:
            failStart(f"{self.name}: {e}")

    def _settle(self) -> Deferred[None]:
        shared = ISharedUploadStore(self._store, None)
        return succeed(None) if shared is None else shared.settle()

    async def _stop(self) -> None:
        # its listener's drain lets running transfers end in the store
        await super().stopService()
        if self.reception is not None:
            self.reception.hurry()
        await self._web.stop()
        if self._judge is not None:
            await self._judge.stop()
        hook, self._hook = self._hook, None
        if hook is not None:
            await hook.stop()
        store, self._store = self._store, None
        if store is not None:
            await store.close()
        if self.reception is not None:
            # files that got their name meanwhile are in the log, too
            self.reception.hurry()
        while self._shown:
            self._shown.pop().disownServiceParent()

    def stopService(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stop())

    def _classic(self, transport: Any) -> ClassicReceiver | ClassicRefusal:
        assert self.reception is not None
        client = clientOf(transport)
        # classic has no credentials: where they are asked for, it must be asked for too
        trusted = client.local and self._authenticator is None
        if trusted or client.host in self._classicFrom:
            return ClassicReceiver(self._reactor, self.reception, self._classicSuffix)
        return ClassicRefusal()

    def _native(self, transport: Any) -> Link:
        if self._receiver is None:
            assert self.reception is not None
            self._receiver = NativeReceiver(
                self._reactor, self.reception, self._digests, self._authenticator
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
