"""
Sending files: what C{connpool send} and programs call.

Theory of operation
===================
A L{Sending} goes through its files with one L{Transmission} after the other.
When a connection breaks, the files that had no answer go with the next one,
under the same keys, so nothing is stored twice and what the receiver holds is
not sent again.  It gives up after L{Retry.attempts} connections in a row that brought nothing
forward (L{Transmission.advanced}); at once if the very first cannot be made.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import attrs
from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import (
    Cancelled,
    NetworkFailed,
    ProtocolError,
    SourceError,
    TransferError,
    Unanswered,
)
from connpool.interfaces import ILiveTransfers
from connpool.transfer.hashing import InThread, inThread
from connpool.transfer.names import displayName
from connpool.transfer.records import LiveTransfer, Receipt
from connpool.transfer.send.joblist import Job, WorkList
from connpool.transfer.send.keys import HeldRun, Run, SenderKeys
from connpool.transfer.send.report import FileOutcome, SendReport, UnderWay, Wait, waitAfter
from connpool.transfer.send.session import Credentials, SenderSession, SessionFactory, hello
from connpool.transfer.send.streams import Asked
from connpool.transfer.send.transmission import Transmission
from connpool.transfer.send.walking import Found, walk
from connpool.transfer.wire.messages import Ack, Receipting

__all__ = [
    "FileOutcome",
    "Retry",
    "SendReport",
    "Sending",
    "Wait",
    "dialled",
    "pooled",
    "sendFiles",
]

#: Connections that are tried where nobody has ever said anything.
UNHEARD_ATTEMPTS = 4


@attrs.frozen
class Retry:
    """
    @ivar attempts: connections in a row that bring nothing forward.
    @ivar first: seconds before the second one; doubled each time,
    @ivar longest: up to this.
    """

    attempts: int = 8
    first: float = 0.5
    longest: float = 15.0


class _Dialled:
    """
    Connections made one by one.
    """

    def __init__(self, endpoint: Any, factory: SessionFactory) -> None:
        self._endpoint = endpoint
        self._factory = factory

    async def open(self) -> _Connection:
        link = await self._endpoint.connect(self._factory)
        session = link.session
        try:
            await hello(link)
        except BaseException:
            session.close()
            raise
        return _Connection(session, session.close, session.close)


class _Pooled:
    """
    Connections leased from a pool whose C{prepare} is L{hello}.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def open(self) -> _Connection:
        lease = await self._pool.acquire()
        session = lease.protocol.session

        def discard() -> None:
            session.close()
            lease.discard()

        return _Connection(session, lease.release, discard)


@attrs.frozen(eq=False)
class _Connection:
    session: SenderSession
    release: Callable[[], Any]
    discard: Callable[[], Any]


def dialled(endpoint: Any, factory: SessionFactory) -> Any:
    """
    Connections for L{Sending}, made one by one.
    """
    return _Dialled(endpoint, factory)


def pooled(pool: Any) -> Any:
    """
    Connections for L{Sending}, leased.

    @param pool: any L{IConnectionPool} over a L{SessionFactory} with
        C{prepare=hello}: a lease is one authenticated session.
    """
    return _Pooled(pool)


@implementer(ILiveTransfers)
class Sending:
    """
    @param connections: has C{open()}; see L{sendFiles}.
    @param paths: what to send; C{-} is standard input, a L{Found} has a name of its own.
    @param destination: how the receiver is called, always the same.
    @param answered: called with each L{FileOutcome}.
    @param jobs: connections at once, if the connections allow more than one.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        connections: Any,
        paths: Sequence[str | Found],
        destination: str,
        *,
        asked: Asked | None = None,
        keys: SenderKeys | HeldRun | None = None,
        retry: Retry | None = None,
        answered: Callable[[FileOutcome], Any] | None = None,
        jobs: int = 1,
        stdinName: str = "stdin",
        run: InThread | None = None,
    ) -> None:
        self._reactor = reactor
        self._connections = connections
        self._asked = asked or Asked()
        self._retry = retry or Retry()
        self._answered = answered or (lambda _: None)
        self._jobs = jobs
        self._inThread = run or inThread(reactor)
        # who only asks must not end a run that was interrupted
        self._run = (
            Run.ephemeral() if self._asked.dry else (keys or SenderKeys()).begin(destination)
        )
        self._work = WorkList(
            walk(paths, stdinName),
            self._run,
            self._inThread,
            self._failedEarly,
            self._passedOver,
        )
        self._session: SenderSession | None = None
        self._transmission: Transmission | None = None
        self._cancelled = False
        self._somebodyAnswered = self._heard = False
        self._destination = destination
        self.report = SendReport()
        self._underWay = self.report.underWay

    @property
    def resumable(self) -> bool:
        """
        Tell whether a later process can go on where this one was interrupted.
        """
        return self._run.resumable

    async def send(self) -> SendReport:
        """
        Send, and begin again as long as it makes sense.
        """
        retry, failures = self._retry, 0
        try:
            while True:
                why, advanced = await self._once()
                if self._cancelled:
                    raise CancelledError
                if self._work.empty:
                    return self.report
                why = why or NetworkFailed("the receiver is stopping")
                failures = 1 if advanced else failures + 1
                if (
                    not self._worthRetrying(why)
                    or failures
                    >= (retry.attempts if self._heard else min(retry.attempts, UNHEARD_ATTEMPTS))
                    or not self._somebodyAnswered
                ):
                    await self._work.abandon(why)
                    return self.report
                delay = min(retry.first * 2 ** (failures - 1), retry.longest)
                delay *= random.uniform(0.75, 1.25)  # noqa: S311 - spreads retries
                self.report.retry = waitAfter(why, "", self._reactor.seconds() + delay)
                try:
                    await task.deferLater(self._reactor, delay, lambda: None)
                finally:
                    self.report.retry = None
        finally:
            unanswered = any(
                isinstance(outcome.error, TransferError) and outcome.error.retryable
                for outcome in self.report.outcomes
            )
            self._work.close()
            self._run.end(self._work.empty and not unanswered and not self._cancelled)

    def _worthRetrying(self, why: TransferError) -> bool:
        # a peer that spoke the protocol and then does not: damage on the way
        return why.retryable or (isinstance(why, ProtocolError) and self.report.connections > 0)

    async def _once(self) -> tuple[TransferError | None, bool]:
        """
        Send over one connection.

        @return: what ended it early, and whether any file was brought forward.
        """
        why: TransferError | None
        try:
            connection = await self._connections.open()
        except Exception as e:
            if isinstance(e, CancelledError):
                raise
            why = _greetingError(e)
            self._somebodyAnswered = self._somebodyAnswered or why is not None
            self._heard = self._heard or not isinstance(why, Unanswered)
            return why or _cannotConnect(e), False
        if self._cancelled:
            connection.discard()
            raise CancelledError
        session = self._session = connection.session
        self.report.connections += 1
        self._somebodyAnswered = self._heard = True
        transmission = self._transmission = Transmission(
            self._reactor,
            session,
            self._work,
            self._asked,
            self,
            self._inThread,
            self._connections.open,
            self._jobs - 1,
        )
        why = None
        try:
            await transmission.run()
        except TransferError as e:
            why = e
            connection.discard()
        except BaseException:
            connection.discard()
            raise
        else:
            connection.release()
        finally:
            self._session = self._transmission = None
            for job in transmission.unfinished:
                if job.spent and not self._cancelled:
                    self.failed(job, SourceError(f"standard input cannot be sent again: {why}"))
                else:
                    self._work.again(job)
        return why, transmission.advanced

    def cancel(self) -> None:
        """
        Stop now.  The receiver keeps what it has of resumable files.
        """
        self._cancelled = True
        if self._session is not None:
            self._session.link.abort(Cancelled("interrupted"))

    def drop(self, path: str) -> bool:
        """
        Give up one large file; the others go on over the same connection.

        @param path: as in its L{FileOutcome}.
        @return: whether it could still be given up.
        """
        if self._work.drop(path, Cancelled("given up")):
            return True
        return self._transmission is not None and self._transmission.drop(path)

    def liveTransfers(self, limit: int) -> Sequence[LiveTransfer]:
        return tuple(
            LiveTransfer(
                transferId=job.transferId.hex(),
                name=displayName(job.name),
                peer=displayName(self._destination),
                direction="out",
                protocol="native",
                size=job.size,
                done=each.done,
                phase="publishing" if each.done == job.size else "moving",
                slowedBy=each.slow or "peer",
            )
            for job, each in islice(self._underWay.items(), limit)
        )

    # -- told by the transmission

    def stored(
        self,
        job: Job,
        message: Receipting | Ack,
        root: bytes | None,
        size: int,
        session: SenderSession,
        earlier: str = "",
    ) -> None:
        """
        Note that a file has its receipt.
        """
        wanted = job.name.decode("utf-8")
        receipt = Receipt(
            transferId=job.transferId.hex(),
            name=wanted if isinstance(message, Ack) else message.name.decode("utf-8", "replace"),
            wanted=wanted,
            size=size,
            status="stored" if isinstance(message, Ack) else message.status,
            durability=message.durability,
            filesystem=message.filesystem,
            integrity="verified" if isinstance(message, Ack) else message.integrity,
            digest=(
                session.digest.name
                if isinstance(message, Ack) or message.digest is None
                else message.digest
            ),
            root=root.hex() if root is not None else None,
            protocol="native",
            principal=session.principal,
            finished=message.finished / 1000,
        )
        if earlier != "gone":
            self.report.doneBytes += size
        self.report.slowed = ""
        self._outcome(job, receipt=receipt, earlier=earlier)

    def failed(self, job: Job, why: TransferError) -> None:
        """
        Note that a file is not going to be stored.
        """
        self._outcome(job, error=why)

    _failedEarly = failed

    def _passedOver(self, link: Found) -> None:
        self.report.passedOver += 1

    def directoryMade(self) -> None:
        """
        A directory is there, with its time.
        """
        self.report.directories += 1

    def directoriesLeftOut(self, count: int) -> None:
        """
        The receiver is not asked for directories.
        """
        self.report.directoriesLeftOut += count

    def wouldTake(self, job: Job) -> None:
        """
        Note the answer of a dry run.
        """
        self._outcome(job)

    def sent(self, job: Job, count: int) -> None:
        """
        Count bytes that were given to a connection.
        """
        self.report.delayed.pop(job, None)
        self.report.sentBytes += count
        if job.size is None or job in self._underWay:
            self._of(job).sent += count

    def resumed(self, job: Job, count: int) -> None:
        """
        Note that the receiver takes a file, and holds some of it already.
        """
        self._underWay[job] = UnderWay(job, count)
        self.report.delayed.pop(job, None)
        if not job.accepted:
            # the next time it holds what we sent
            job.accepted = True
            self.report.resumedBytes += count

    def slowed(self, word: str) -> None:
        """
        Note what the receiver says that small files wait for; empty for nothing.
        """
        self.report.slowed = displayName(word)

    def delayed(self, job: Job, why: TransferError, due: float) -> None:
        """
        Note that the receiver does not take a file now; it is offered again.
        """
        self._underWay.pop(job, None)
        self.report.delayed[job] = waitAfter(why, displayName(job.name), due)

    def phase(self, job: Job, phase: str, slow: str) -> None:
        """
        Note the phase that the receiver is in.
        """
        each = self._of(job)
        each.phase, each.slow = phase, displayName(slow)

    def _of(self, job: Job) -> UnderWay:
        return self._underWay.setdefault(job, UnderWay(job))

    def _outcome(self, job: Job, **what: Any) -> None:
        name = displayName(job.name or job.path)
        self._underWay.pop(job, None)
        job.letGo()
        self.report.delayed.pop(job, None)
        outcome = FileOutcome(job.path, name, asked=self._asked.durability, **what)
        self.report.outcomes.append(outcome)
        self._answered(outcome)


def sendFiles(
    reactor: Any,
    endpoint: Any,
    paths: Sequence[str | Found],
    *,
    destination: str = "",
    ifExists: str = "",
    durability: str = "best",
    dry: bool = False,
    digests: Sequence[str] = ("blake3", "sha256"),
    credentials: Credentials | None = None,
    keys: SenderKeys | HeldRun | None = None,
    retry: Retry | None = None,
    answered: Callable[[FileOutcome], Any] | None = None,
    pool: Any = None,
    jobs: int = 1,
    begun: Callable[[Sending], Any] | None = None,
    idleTimeout: float = 60.0,
) -> Deferred[SendReport]:
    """
    Send files, directories and (C{-}) standard input to a receiver.

    @param endpoint: where it is: an L{IStreamClientEndpoint}.
    @param destination: a name for the receiver that is the same each time, so
        that files are resumed; left out, they are resumed within this call only.
    @param ifExists: one of L{IF_EXISTS}; empty for the receiver's rule.
    @param durability: one of L{ASKABLE_DURABILITIES}: C{best} is the strongest that the
        receiver's file system reaches, and takes what that is for success.
    @param dry: only ask what the receiver would take.
    @param digests: algorithms this side trusts.
    @param answered: called with each L{FileOutcome}.
    @param pool: any L{IConnectionPool} over C{SessionFactory} with C{prepare=hello}, used
        instead of C{endpoint}, for C{jobs} above 1.
    @param jobs: connections a large file may use at once.
    @param begun: called first, with an L{ILiveTransfers} of what is under way.
    @param idleTimeout: seconds of silence from the receiver that end a connection; a C{pool}'s
        are told to its C{SessionFactory}.
    @return: fires with the report, also when files failed.  Cancelling it stops
        sending; the receiver keeps what can be resumed.
    """
    if pool is not None:
        connections = pooled(pool)
    else:
        factory = SessionFactory(reactor, digests, credentials, idleTimeout)
        connections = dialled(endpoint, factory)
    sending = Sending(
        reactor,
        connections,
        paths,
        destination,
        asked=Asked(ifExists, durability, dry),
        keys=keys,
        retry=retry,
        answered=answered,
        jobs=jobs,
    )
    if begun is not None:
        begun(sending)
    running = Deferred.fromCoroutine(sending.send())

    def cancel(_: Any) -> None:
        sending.cancel()
        running.cancel()

    result: Deferred[SendReport] = Deferred(cancel)
    running.addCallbacks(result.callback, result.errback)
    return result


def _greetingError(why: BaseException | None) -> TransferError | None:
    """
    Find the error of a peer that answered in what a connection attempt raised.
    """
    # a pool's own error says why in its cause
    while why is not None and not isinstance(why, TransferError):
        why = why.__cause__
    return why


def _cannotConnect(why: Exception) -> NetworkFailed:
    cause = getattr(why, "reasons", None)
    text = str(cause[0].value if cause and isinstance(cause[0], Failure) else why)
    text = " ".join(text.split()).rstrip(".") or type(why).__name__
    failed = NetworkFailed(f"cannot connect: {text}")
    failed.__cause__ = why
    return failed
