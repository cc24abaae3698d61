"""
A service that forwards what settles in a folder.

A source is sent when nobody writes to it any more, and removed (or moved) only
when its receipt says that the very content that it has in the end is stored and
durable (L{connpool.transfer.send.removal}).  A file that the receiver will never
take is set aside, with the reason; one that only waits for the receiver waits.

Until a receipt says C{full}, one file alone is sent: a receiver that cannot
promise that is reported, and does not pile up what nobody may remove here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from zope.interface import implementer

from connpool.addresses import clientEndpoint
from connpool.errors import Cancelled, ChangedSource, ConnpoolError, SourceError, StartFailed
from connpool.interfaces import (
    IConnecting,
    ILiveTransfers,
    IReadiness,
    IReloadable,
    IStatsSource,
)
from connpool.logonce import LogOnce
from connpool.pool import ConnectionPool, ConnectionPoolService
from connpool.services.logs import logTogether
from connpool.services.options import asDestination, readRate
from connpool.services.startfailure import failStart
from connpool.services.threadwork import ThreadWork
from connpool.transfer.names import displayName
from connpool.transfer.records import LiveTransfer, Receipt
from connpool.transfer.send.choosing import Choice
from connpool.transfer.send.client import FileOutcome, Retry, sendFiles
from connpool.transfer.send.connections import SessionFactory, hello
from connpool.transfer.send.credentials import Credentials
from connpool.transfer.send.departures import Departures
from connpool.transfer.send.keys import HeldRun, SenderKeys
from connpool.transfer.send.openfiles import Answer, Writers
from connpool.transfer.send.outbox import (
    UNKNOWN_FACTOR,
    Outbox,
    OutboxStats,
    liesInTheFile,
    liesInTheWay,
)
from connpool.transfer.send.outboxfolder import OutboxFolder
from connpool.transfer.send.pace import Pace
from connpool.transfer.send.removal import Departure, Fate, NotDurable, doubt
from connpool.transfer.send.temporarynames import TemporaryNames
from connpool.transfer.send.walking import Found
from connpool.transfer.syscalls import reasonOf

__all__ = ["FileSender"]

#: Files of one go.
BATCH_FILES = 1000

#: Bytes of the salt of a renewed key.
_SALT_BYTES = 16

#: Why a file that was seen cannot be opened, and it is no file to send by now.
_VANISHED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})


@implementer(IConnecting, IStatsSource, ILiveTransfers, IReadiness, IReloadable)
class FileSender(MultiService):
    """
    A folder that is watched, and emptied into a receiver.

    @ivar pool: its connections; there while the service runs.

    @param reactor: also the clock.
    @param directory: the existing folder to watch.
    @param to: the receiver: C{HOST:PORT}, a client endpoint description, or a client
        endpoint.
    @param ca: PEM file of what to trust for C{tls:}; L{None} for the system's authorities.
    @param credentials: user and password; L{None} for none.
    @param moveTo: existing directory for sent files; L{None} removes them.
    @param settle: seconds without a change before a file is sent.
    @param interval: seconds between two looks at the folder.
    @param jobs: connections at once.
    @param attempts: refusals of a file before it is set aside.
    @param ignore: patterns of what is left alone, as in C{.gitignore}; paths are those in the
        folder.
    @param trustSettled: remove files also where nobody can tell whether they are still
        written to.
    @param sendTemporary: send files whose names look temporary, too.
    @param keepDirectories: keep directories that are empty once their files were sent.
    @param writerWarning: seconds that a file may be open for writing before readiness
        says so.
    @param compress: as in L{sendFiles}.
    @param bwlimit: bytes a second at most, such as C{2M}, or the path of a file that says so and
        is read again when the service reloads; C{0} for no limit.
    @param name: in logs and metrics.
    @raise AddressError: for a description that is none; one line.
    @raise WrongSetting: for a pattern that no path fits, or a rate that is none; one line.
    """

    kind = "outbox"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        directory: str | os.PathLike[str],
        to: Any,
        *,
        ca: str | None = None,
        credentials: Credentials | None = None,
        moveTo: str | os.PathLike[str] | None = None,
        settle: float = 2.0,
        interval: float = 5.0,
        jobs: int = 1,
        attempts: int = 3,
        ignore: Sequence[str] = (),
        trustSettled: bool = False,
        sendTemporary: bool = False,
        keepDirectories: bool = False,
        writerWarning: float = 600.0,
        bwlimit: str = "0",
        compress: str = "auto",
        name: str = "filesend",
    ) -> None:
        super().__init__()
        self.name: str = name
        self._reactor = reactor
        self._directory = os.fspath(directory)
        self._to = asDestination(to, ca) if isinstance(to, str) else to
        self._ca = ca
        self._credentials = credentials
        self._openFolder = partial(
            OutboxFolder,
            self._directory,
            None if moveTo is None else os.fspath(moveTo),
            temporary=TemporaryNames(not sendTemporary),
            choice=Choice.ignoring(ignore),
            trustSettled=trustSettled,
            keepDirectories=keepDirectories,
        )
        self._settle = settle
        self._interval = interval
        self._jobs = jobs
        self._attempts = attempts
        self._trustSettled = trustSettled
        self._writerWarning = writerWarning
        self._outbox = Outbox(settle, attempts)
        self._bwlimit = bwlimit
        self._compress = compress
        self._pace = Pace(reactor, readRate(bwlimit))
        self._run: Deferred[None] | None = None
        self.pool: ConnectionPool | None = None
        self._sent = self._sentBytes = self._failed = self._setAside = 0
        self._temporary = self._ignored = 0
        self._met = LogOnce(self._sayTryingAgain)
        self._leftOut: dict[str, str] = {}
        self._sending: Any = None
        self._stopping = self._concluding = False
        self._threads = ThreadWork()
        self._inThread = self._threads.run
        # one line each, empty if there is nothing to say
        self._unreadable = self._weak = self._longOpen = self._unsure = ""
        # a file that showed that the receiver fails; whether another is next
        self._failing: tuple[str, bool] | None = None
        self._lines: list[dict[str, str]] = []

    def startService(self) -> None:
        try:
            self._folder = self._openFolder()
        except StartFailed as e:
            failStart(f"{self.name}: {e}")
        endpoint = self._to
        if isinstance(endpoint, str):
            endpoint = clientEndpoint(self._reactor, endpoint, ca=self._ca)
        self.pool = ConnectionPool(
            self._reactor,
            endpoint,
            SessionFactory(self._reactor, credentials=self._credentials, pace=self._pace),
            prepare=hello,
            maxSize=self._jobs,
            minIdle=0,
            name=self.name,
        )
        self._pooling = ConnectionPoolService(self.pool, drainTimeout=5.0)
        self._pooling.setServiceParent(self)
        super().startService()
        self._keys = SenderKeys(Path(self._folder.state))
        self._outbox = Outbox(self._settle, self._attempts)
        remembered = self._folder.remembered()
        self._outbox.restore(remembered, self._reactor.seconds())
        self._noted = self._outbox.memory
        self._log.info(
            "{name} watches {directory} and sends to {to}",
            name=self.name,
            directory=os.path.abspath(self._directory),
            to=self._to,
        )
        if self._folder.blind is not None:
            self._warnUnsure(self._folder.blind)
        # until a receipt says that the receiver stores durably
        self._probing = True
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
            interval = self._interval
            again = self._reactor.seconds() + interval
            while due := self._outbox.due(
                self._reactor.seconds(), 1 if self._probing else BATCH_FILES
            ):
                ready = await self._withoutWriters(due)
                if ready:
                    await self._send(pool, ready)
                if self._stopping:
                    return
                if self._reactor.seconds() >= again:
                    break
            wait = self._outbox.next(self._reactor.seconds())
            await self._sleep(interval if wait is None else min(max(wait, 0.05), interval))

    def _sleep(self, seconds: float) -> Deferred[None]:
        woken: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self._reactor.callLater(seconds, woken.callback, None)
        return woken

    # -- before they are sent

    async def _look(self) -> None:
        try:
            found = await self._inThread(self._folder.scan)
        except (OSError, StartFailed) as e:
            why = reasonOf(e) if isinstance(e, OSError) else str(e)
            self._unreadable = f"cannot read the folder: {why}"
            self._met.met(self._unreadable)
            return
        self._unreadable = ""
        now = self._reactor.seconds()
        self._outbox.scanned(found, now)
        self._temporary, self._ignored = self._folder.temporaryCount, self._folder.ignoredCount
        for path in self._folder.recovered:
            self._sent += 1
            self._log.info(
                "{name} had sent {file}, and has removed it now",
                name=self.name,
                file=displayName(path),
            )
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
        self._findLongOpen(now)

    def _findLongOpen(self, now: float) -> None:
        before, self._longOpen = self._longOpen, ""
        longest = self._outbox.longOpen(now, self._writerWarning)
        if longest is not None:
            path, seconds = longest
            self._longOpen = (
                f"{displayName(path)} has been open for writing for {seconds:.0f} s; it is sent "
                "when its writer has closed it"
            )
            if not before:
                self._log.warn("{name}: {what}", name=self.name, what=self._longOpen)

    async def _withoutWriters(self, names: Sequence[str]) -> list[str]:
        """
        @return: those of C{names} that may be sent now.
        """
        looks = await self._inThread(self._folder.look, names)
        now = self._reactor.seconds()
        ready = []
        for name in names:
            answer = looks[name].answer
            if isinstance(answer, OSError):
                if answer.errno in _VANISHED:
                    self._outbox.done(name)
                else:
                    ready.append(name)  # the sending says why not
            elif answer.writers is Writers.SOME:
                self._outbox.busy(name, now)
            elif answer.writers is Writers.NONE:
                self._outbox.free(name)
                ready.append(name)
            else:
                self._warnUnsure(answer.why)
                if self._outbox.looked(name, looks[name].content, now):
                    ready.append(name)
        self._staying = {
            name
            for name in ready
            if isinstance(answer := looks[name].answer, Answer) and not self._folder.mayGo(answer)
        }
        return ready

    def _warnUnsure(self, why: str) -> None:
        """
        Log once why nobody can tell whether a file is still written to.
        """
        if self._unsure:
            return
        self._unsure = why
        trusted = self._trustSettled
        self._log.warn(
            "{name}: nobody can tell in {directory} whether a file is still written to ({why}); "
            "what does not change for {seconds} s is sent, and {then}",
            name=self.name,
            directory=os.path.abspath(self._directory),
            why=why,
            seconds=format(UNKNOWN_FACTOR * self._settle, "g"),
            then="removed, as --trust-settled says"
            if trusted
            else "stays: use a folder on ext4, xfs, btrfs or tmpfs with files of the same user, "
            "or --trust-settled to remove it all the same",
        )

    # -- sending

    async def _send(self, pool: ConnectionPool, names: Sequence[str]) -> None:
        """
        One go at what is due.
        """
        before = {name: self._outbox.versionOf(name) for name in names}
        files = [Found(os.path.join(self._folder.path, name), name.encode()) for name in names]
        outcomes: dict[str, FileOutcome] = {}
        prefix, to = len(os.path.join(self._folder.path, "")), self._to
        departures = Departures(partial(self._inThread, self._folder.remove))

        def answered(outcome: FileOutcome) -> None:
            name = outcome.path[prefix:]
            outcomes.setdefault(name, outcome)
            if outcome.error is None and name not in self._staying:
                departures.add(name, before[name], outcome.receipt)

        # The keys must outlive the sources: if we are killed in between, the
        # same file goes under the same key, and is not stored twice.
        try:
            run = self._keys.begin(to)
        except SourceError as e:
            self._met.met(str(e))
            for name in names:
                self._outbox.failed(name, self._reactor.seconds(), own=False)
            return
        salts = {
            os.fsencode(os.path.abspath(file.path)): salt
            for name, file in zip(names, files, strict=True)
            if (salt := self._outbox.saltOf(name))
        }
        try:
            await sendFiles(
                self._reactor,
                None,
                files,
                destination=to,
                durability="full",
                keys=HeldRun(run, salts),
                retry=Retry(attempts=2),
                answered=answered,
                pool=pool,
                jobs=self._jobs,
                compress=self._compress,
                pace=self._pace,
                begun=partial(setattr, self, "_sending"),
            )
        finally:
            self._sending = None
            # what was answered counts, also when a stop cut this short
            self._concluding = True
            try:
                run.end(await self._conclude(names, before, outcomes, departures))
            finally:
                self._concluding = False

    async def _conclude(
        self,
        names: Sequence[str],
        before: Mapping[str, tuple[int, ...]],
        outcomes: Mapping[str, FileOutcome],
        departures: Departures,
    ) -> bool:
        """
        Draw the consequences of a go.

        @return: whether all of it was answered for good.
        """
        stored: dict[str, Receipt] = {}
        kept: dict[str, tuple[int, ...] | None] = {}
        self._failing = None
        over = True
        for name in names:
            outcome = outcomes.get(name)
            if outcome is None or isinstance(outcome.error, Cancelled | ChangedSource):
                self._outbox.changed(name, self._reactor.seconds())
                over = False
                continue
            receipt = outcome.receipt
            if outcome.good and receipt is None:
                # the receiver's rule is to leave another one where it is
                kept[name] = None
                self._log.warn(
                    "{name} keeps {file}: {why}",
                    name=self.name,
                    file=displayName(name),
                    why=str(outcome.error),
                )
                continue
            why = outcome.error or doubt(receipt)
            if why is not None:
                over = await self._refused(name, before[name], why) and over
                continue
            assert receipt is not None
            self._met.over()
            self._weak = ""
            self._probing = False
            self._outbox.release()
            if name in self._staying:
                kept[name] = None
                self._logSent(name, receipt)
            else:
                stored[name] = receipt
        if stored:
            over = self._gone(stored, await departures.all(), kept) and over
        lines, self._lines = self._lines, []
        logTogether(self._log, lines, name=self.name)
        if self._failing is not None:
            path, rotate = self._failing
            self._outbox.hold(path, self._reactor.seconds(), rotate)
        await self._remember(kept)
        return over

    def _gone(
        self,
        stored: Mapping[str, Receipt],
        departures: Mapping[str, Departure],
        kept: dict[str, tuple[int, ...] | None],
    ) -> bool:
        """
        @param kept: gets those that stay after all.
        @return: whether all are gone from the folder.
        """
        now = self._reactor.seconds()
        over = True
        for name, receipt in stored.items():
            departure = departures[name]
            if departure.fate is Fate.GONE:
                self._sent += 1
                self._sentBytes += receipt.size
                self._outbox.done(name)
                self._logSent(name, receipt)
                continue
            if departure.fate is Fate.UNSURE:
                self._staying.add(name)
                kept[name] = departure.version
                self._logSent(name, receipt)
                continue
            over = False
            if departure.fate is Fate.CHANGED:
                # it settles, and goes again; the old key stands for the old content
                self._outbox.renew(name, os.urandom(_SALT_BYTES))
                self._outbox.changed(name, now)
            elif departure.fate is Fate.FAILED:
                why = departure.error and departure.error.strerror
                self._met.met(f"cannot remove {displayName(name)}: {why}")
                self._failed += 1
                self._outbox.failed(name, now, own=False, version=departure.version)
            else:
                self._outbox.done(name)
        return over

    def _logSent(self, name: str, receipt: Receipt) -> None:
        file, stays = displayName(name), "; it stays" * (name in self._staying)
        text = f"{self.name} sent {file}{stays}, id {receipt.transferId}"
        self._lines.append({"text": text, "file": file, "id": receipt.transferId})

    async def _remember(self, kept: Mapping[str, tuple[int, ...] | None]) -> None:
        rows = [row for item in kept.items() if (row := self._outbox.keep(*item)) is not None]
        memory = self._outbox.memory
        try:
            if rows:
                await self._inThread(self._folder.rememberKept, rows)
            if memory != self._noted:
                await self._inThread(self._folder.remember, memory)
                self._noted = memory
        except OSError as e:
            self._met.met(f"cannot write to the folder: {reasonOf(e)}")

    async def _refused(self, name: str, before: tuple[int, ...], why: ConnpoolError) -> bool:
        """
        @return: whether the source is gone from the folder.
        """
        self._failed += 1
        now = self._reactor.seconds()
        own = liesInTheFile(why)
        if not own:
            self._met.met(str(why))
        if why.code == "digest-mismatch":
            # the receiver may know the key, for another content
            self._outbox.renew(name, os.urandom(_SALT_BYTES))
        poison = self._outbox.failed(name, now, own)
        if isinstance(why, NotDurable):
            self._weak = str(why)
        if liesInTheWay(why) or isinstance(why, NotDurable):
            self._probing = True
            # a receiver that is away is asked with another file the next time: it
            # may be this one that it dies of
            self._failing = self._failing or (name, not isinstance(why, NotDurable))
        if not poison:
            return False
        try:
            where = await self._inThread(self._folder.setAside, name, before, f"{why.code}: {why}")
        except OSError as e:
            self._met.met(f"cannot set {displayName(name)} aside: {e.strerror}")
            return False
        if where is None:
            # it is another file by now
            self._outbox.changed(name, now)
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

    def _sayTryingAgain(self, what: str) -> None:
        self._log.warn("{name}: {what}; trying again", name=self.name, what=what)

    async def _stop(self) -> None:
        run, self._run = self._run, None
        self._stopping = True
        self._folder.interrupt()
        if run is not None:
            if not self._concluding:
                run.cancel()
            await run
        await self._threads.ended()
        self._folder.close()
        await super().stopService()
        # a pool is for one life: the next start makes another
        self.removeService(self._pooling)
        self.pool = None

    def stopService(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stop())

    def reload(self) -> None:
        self._pace.change(readRate(self._bwlimit))

    def trouble(self) -> str | None:
        return self._unreadable or self._weak or self._longOpen or None

    def destinations(self) -> Sequence[str]:
        return () if self.pool is None else self.pool.destinations()

    def liveTransfers(self, limit: int) -> Sequence[LiveTransfer]:
        return () if self._sending is None else self._sending.liveTransfers(limit)

    def stats(self) -> OutboxStats:
        return OutboxStats(
            **self._outbox.snapshot(),
            temporary=self._temporary,
            ignored=self._ignored,
            sent=self._sent,
            sentBytes=self._sentBytes,
            failed=self._failed,
            setAside=self._setAside,
            rateLimitBytes=self._pace.rate,
        )
