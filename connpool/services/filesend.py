"""
C{twistd filesend}: forward what settles in a folder.

A source is removed (or moved) only when its receipt says that the very same
content is stored and durable, and nobody can have written to it since
(L{OutboxFolder.remove}).  What the receiver will never take is set aside, with
the reason; what only waits for the receiver waits.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import attrs
from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python import usage
from zope.interface import implementer

from connpool.addresses import clientEndpoint
from connpool.errors import (
    Cancelled,
    ConnpoolError,
    SourceError,
    StartFailed,
    TransferError,
)
from connpool.interfaces import ILiveTransfers, IStatsSource
from connpool.pool import ConnectionPool, ConnectionPoolService
from connpool.services.options import asCount, asDestination, asSeconds
from connpool.services.startfailure import failStart
from connpool.services.status import StatusOptions, observed
from connpool.transfer.names import displayName
from connpool.transfer.records import LiveTransfer, Receipt
from connpool.transfer.send.client import FileOutcome, Retry, sendFiles
from connpool.transfer.send.credentials import readCredentials
from connpool.transfer.send.keys import HeldRun, SenderKeys
from connpool.transfer.send.outbox import Outbox
from connpool.transfer.send.outboxfolder import OutboxFolder
from connpool.transfer.send.session import SessionFactory, hello
from connpool.transfer.send.walking import Found

__all__ = ["FileSenderService", "Options", "OutboxStats", "makeService"]

T = TypeVar("T")

#: Files of one go.
BATCH = 1000

#: Codes that lie in the file itself; the rest may go away while we wait.
_OWN = frozenset({"name-refused", "exists", "too-large", "source-error", "hook-refused"})

#: Why a file cannot be read, and it is not to blame.
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Options(StatusOptions):
    pluginName = "filesend"
    synopsis = "--directory OUTBOX --to HOST:PORT [options]"
    longdesc = (
        "Watches a folder and sends the files that nobody writes to any more. A file is removed "
        "when the receiver has stored it durably."
    )

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
        ["name", None, "filesend", "Name in logs and metrics"],
    ]

    compData = usage.Completions(
        optActions={
            "directory": usage.CompleteDirs(),
            "move-to": usage.CompleteDirs(),
            "ca": usage.CompleteFiles("*.pem"),
        }
    )

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
            ("jobs", asCount),
            ("attempts", asCount),
        ):
            self.convert(name, parse)
        self.convert("credentials", lambda path: readCredentials(path, os.environ))


@attrs.frozen
class OutboxStats:
    """
    @ivar waiting: files in the folder that are not being sent.
    @ivar sending: files being sent.
    @ivar sent: files that are stored and gone from the folder.
    @ivar sentBytes: their content.
    @ivar failed: tries that did not succeed.
    @ivar setAside: files that were set aside.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset({"waiting", "sending"})

    waiting: int = 0
    sending: int = 0
    sent: int = 0
    sentBytes: int = 0
    failed: int = 0
    setAside: int = 0


@implementer(IStatsSource, ILiveTransfers)
class FileSenderService(MultiService):
    """
    @param endpoint: where the receiver is.
    @ivar pool: its connections; there while the service runs.
    """

    kind = "outbox"
    _log = Logger()

    def __init__(self, reactor: Any, options: Options, endpoint: Any = None) -> None:
        super().__init__()
        self.name = options["name"]
        self._reactor = reactor
        self._options = options
        self._endpoint = endpoint
        self._outbox = Outbox(options["settle"], options["attempts"])
        self._run: Deferred[None] | None = None
        self.pool: ConnectionPool | None = None
        self._sent = self._sentBytes = self._failed = self._setAside = 0
        self._troubled = ""
        self._leftOut: dict[str, str] = {}
        self._sending: Any = None
        self._stopping = False
        self._working: set[Deferred[Any]] = set()

    def startService(self) -> None:
        options = self._options
        try:
            self._folder = OutboxFolder(options["directory"], options["move-to"])
        except StartFailed as e:
            failStart(f"{self.name}: {e}")
        endpoint = self._endpoint or clientEndpoint(self._reactor, options["to"], ca=options["ca"])
        self.pool = ConnectionPool(
            self._reactor,
            endpoint,
            SessionFactory(self._reactor, credentials=options["credentials"]),
            prepare=hello,
            maxSize=options["jobs"],
            minIdle=0,
            name=options["name"],
        )
        self._pooling = ConnectionPoolService(self.pool, drainTimeout=5.0)
        self._pooling.setServiceParent(self)
        super().startService()
        self._keys = SenderKeys(Path(self._folder.state))
        self._outbox.restore(self._folder.remembered(), self._reactor.seconds())
        self._log.info(
            "{name} watches {directory} and sends to {to}",
            name=self.name,
            directory=os.path.abspath(options["directory"]),
            to=options["to"],
        )
        self._stopping = False
        self._run = Deferred.fromCoroutine(self._watch(self.pool))
        self._run.addErrback(self._ended)

    def _ended(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("{name} stopped watching", failure, name=self.name)

    async def _watch(self, pool: ConnectionPool) -> None:
        # a sending that is cancelled reports as usual: the flag ends the loop
        while not self._stopping:
            await self._look()
            interval = self._options["interval"]
            again = self._reactor.seconds() + interval
            while due := self._outbox.due(self._reactor.seconds(), BATCH):
                await self._send(pool, due)
                if self._stopping:
                    return
                if self._reactor.seconds() >= again:
                    break
            wait = self._outbox.next(self._reactor.seconds())
            await self._sleep(interval if wait is None else min(max(wait, 0.05), interval))

    def _inThread(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """
        Run C{function} in a thread.  Cancelling ends the wait only; a stop
        waits for the thread, so that nobody else finds its work half done.
        """
        waiting: Deferred[T] = Deferred()
        working = deferToThread(function, *arguments)
        self._working.add(working)

        def ended(result: Any) -> None:
            self._working.discard(working)
            if not waiting.called:
                waiting.callback(result)

        working.addBoth(ended)
        return waiting

    def _sleep(self, seconds: float) -> Deferred[None]:
        woken: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self._reactor.callLater(seconds, woken.callback, None)
        return woken

    async def _look(self) -> None:
        try:
            found = await self._inThread(self._folder.scan)
        except OSError as e:
            self._trouble(f"cannot read the folder: {e.strerror}")
            return
        self._outbox.scanned(found, self._reactor.seconds())
        leftOut = self._folder.leftOut
        for why, what in leftOut.items():
            if self._leftOut.get(why) != what:
                self._log.warn(
                    "{name} does not send {file}: {why}",
                    name=self.name,
                    file=displayName(os.fsencode(what)),
                    why=why,
                )
        self._leftOut = leftOut

    async def _send(self, pool: ConnectionPool, names: Sequence[str]) -> None:
        """
        One go at what is due.
        """
        before = {name: self._outbox.identityOf(name) for name in names}
        files = [Found(os.path.join(self._folder.path, name), name.encode()) for name in names]
        outcomes: dict[str, FileOutcome] = {}
        prefix = len(os.path.join(self._folder.path, ""))
        to = self._options["to"]
        # The keys must outlive the sources: if we are killed in between, the
        # same file goes under the same key, and is not stored twice.
        try:
            run = self._keys.begin(to)
        except SourceError as e:
            self._trouble(str(e))
            for name in names:
                self._outbox.failed(name, self._reactor.seconds(), own=False)
            return
        try:
            await sendFiles(
                self._reactor,
                None,
                files,
                destination=to,
                durability="full",
                keys=HeldRun(run),
                retry=Retry(attempts=2),
                answered=lambda outcome: outcomes.setdefault(outcome.path[prefix:], outcome),
                pool=pool,
                jobs=self._options["jobs"],
                begun=partial(setattr, self, "_sending"),
            )
        finally:
            self._sending = None
            # what was answered counts, also when a stop cut this short
            gone = [await self._answered(name, before[name], outcomes.get(name)) for name in names]
            run.end(all(gone))
        try:
            await self._inThread(self._folder.remember, self._outbox.strikes)
        except OSError as e:
            self._trouble(f"cannot write to the folder: {e.strerror}")

    async def _answered(
        self, name: str, before: tuple[int, ...], outcome: FileOutcome | None
    ) -> bool:
        """
        @return: whether the source is gone from the folder.
        """
        if outcome is None or isinstance(outcome.error, Cancelled):
            self._outbox.changed(name, self._reactor.seconds())
            return False
        if outcome.good and outcome.receipt is not None:
            self._troubled = ""
            return await self._stored(name, before, outcome.receipt)
        return await self._refused(
            name, before, outcome.error or TransferError("the receiver does not store durably")
        )

    async def _stored(self, name: str, before: tuple[int, ...], receipt: Receipt) -> bool:
        try:
            gone = await self._inThread(self._folder.remove, name, before)
        except OSError as e:
            self._trouble(f"cannot remove {displayName(name)}: {e.strerror}")
            self._failed += 1
            self._outbox.failed(name, self._reactor.seconds(), own=False)
            return False
        if gone:
            self._sent += 1
            self._sentBytes += receipt.size
            self._outbox.done(name)
            self._log.info(
                "{name} sent {file}, id {id}",
                name=self.name,
                file=displayName(name),
                id=receipt.transferId,
            )
        else:
            # somebody wrote to it: it settles, and goes again
            self._outbox.changed(name, self._reactor.seconds())
        return gone

    async def _refused(self, name: str, before: tuple[int, ...], why: ConnpoolError) -> bool:
        self._failed += 1
        cause = getattr(why.__context__, "errno", None)
        own = why.code in _OWN and cause not in _SHORTAGE
        if not own:
            self._trouble(str(why))
        if not self._outbox.failed(name, self._reactor.seconds(), own):
            return False
        try:
            where = await self._inThread(self._folder.setAside, name, before, f"{why.code}: {why}")
        except OSError as e:
            self._trouble(f"cannot set {displayName(name)} aside: {e.strerror}")
            return False
        if where is None:
            # it is another file by now
            self._outbox.changed(name, self._reactor.seconds())
            return False
        self._setAside += 1
        self._outbox.done(name)
        self._log.warn(
            "{name} set {file} aside as {where}: {why}",
            name=self.name,
            file=displayName(name),
            where=displayName(where),
            why=str(why),
        )
        return True

    def _trouble(self, what: str) -> None:
        """
        Log a reason once, not every time it comes back.
        """
        if what != self._troubled:
            self._troubled = what
            self._log.warn("{name}: {what}; trying again", name=self.name, what=what)

    async def _stop(self) -> None:
        run, self._run = self._run, None
        self._stopping = True
        if run is not None:
            run.cancel()
            await run
        await DeferredList(list(self._working))
        self._folder.close()
        await super().stopService()
        # a pool is for one life: the next start makes another
        self.removeService(self._pooling)
        self.pool = None

    def stopService(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stop())

    def liveTransfers(self, limit: int) -> Sequence[LiveTransfer]:
        return () if self._sending is None else self._sending.liveTransfers(limit)

    def stats(self) -> OutboxStats:
        counts = self._outbox.snapshot()
        return OutboxStats(
            counts["waiting"],
            counts["sending"],
            self._sent,
            self._sentBytes,
            self._failed,
            self._setAside,
        )


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    @param options: parsed.
    @param reactor: the global one unless given.
    """
    if reactor is None:
        from twisted.internet import reactor
    return observed(options, FileSenderService(reactor, options), reactor)
