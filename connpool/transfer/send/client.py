"""
Sending files: what C{connpool send} and programs call.

Theory of operation
===================
A L{Sending} goes through its files with one L{Transmission} after the other.
When a connection breaks, the files that had no answer go with the next one,
under the same keys, so nothing is stored twice and what the receiver holds is
not sent again.  It gives up after L{Retry.attempts} connections in a row that brought nothing
forward (L{Exchange.advanced}); at once if the very first cannot be made.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred
from zope.interface import implementer

from connpool.errors import (
    Cancelled,
    NetworkFailed,
    ProtocolError,
    SourceError,
    TransferError,
    Unanswered,
)
from connpool.interfaces import IConnectionPool, ILiveTransfers
from connpool.transfer.iothreads import InThread
from connpool.transfer.iothreads import inThread as globalThreads
from connpool.transfer.names import displayName
from connpool.transfer.records import LiveTransfer
from connpool.transfer.send.connections import (
    Connections,
    Dialled,
    Pooled,
    SessionFactory,
    connectionFailure,
    greetingError,
)
from connpool.transfer.send.credentials import Credentials
from connpool.transfer.send.joblist import JobList
from connpool.transfer.send.keys import HeldRun, Run, SenderKeys
from connpool.transfer.send.report import FileOutcome, Reporter, SendReport, waitAfter
from connpool.transfer.send.request import SendRequest
from connpool.transfer.send.session import SenderSession
from connpool.transfer.send.streams import Exchange
from connpool.transfer.send.transmission import Transmission
from connpool.transfer.send.walking import Found, Walk

if TYPE_CHECKING:
    from connpool.transfer.send.choosing import Choice
    from connpool.transfer.send.pace import Pace

__all__ = ["FileOutcome", "Retry", "SendReport", "Sending", "sendFiles"]

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


@implementer(ILiveTransfers)
class Sending:
    """
    Files on their way to one receiver.

    @param paths: the files to send; C{-} is standard input, a L{Found} has a name of its own.
    @param destination: a name for the receiver, always the same.
    @param answered: called with each L{FileOutcome}.
    @param jobs: connections at once, if the connections allow more than one.
    @param choice: of what is found; L{None} for all of it.
    @param notSent: called with each link, and all that was left out.
    @param pace: of C{connections}, to be reported.
    @ivar report: kept up to date.
    """

    def __init__(
        self,
        reactor: Any,
        connections: Connections,
        paths: Iterable[str | Found],
        destination: str,
        *,
        request: SendRequest | None = None,
        keys: SenderKeys | HeldRun | None = None,
        retry: Retry | None = None,
        answered: Callable[[FileOutcome], Any] = lambda _: None,
        jobs: int = 1,
        stdinName: str = "stdin",
        choice: Choice | None = None,
        notSent: Callable[[Found], Any] = lambda _: None,
        pace: Pace | None = None,
        inThread: InThread | None = None,
    ) -> None:
        self._reactor = reactor
        self._connections = connections
        self._destination = destination
        self._request = request or SendRequest()
        self._retry = retry or Retry()
        self._furtherLanes = jobs - 1
        self._inThread = inThread or globalThreads(reactor)
        self._reporter = Reporter(self._request.durability, answered, notSent)
        self.report = self._reporter.report
        self.report.pace = pace
        # a dry run must not end a run that was interrupted
        self._run = (
            Run.ephemeral() if self._request.dry else (keys or SenderKeys()).begin(destination)
        )
        self._jobs = JobList(
            Walk(paths, stdinName, choice),
            self._run,
            self._inThread,
            self._reporter.failed,
            self._reporter.passedOver,
            self._request.update,
            growing=self._request.growing,
            seconds=reactor.seconds,
        )
        self._session: SenderSession | None = None
        self._cancelled = False
        self._somebodyAnswered = self._heard = False

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
                if self._jobs.empty:
                    return self.report
                why = why or NetworkFailed("the receiver is stopping")
                failures = 1 if advanced else failures + 1
                if (
                    not self._worthRetrying(why)
                    or failures
                    >= (retry.attempts if self._heard else min(retry.attempts, UNHEARD_ATTEMPTS))
                    or not self._somebodyAnswered
                ):
                    await self._jobs.abandon(why)
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
            self._jobs.close()
            self._run.end(self._jobs.empty and not unanswered and not self._cancelled)

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
            why = greetingError(e)
            self._somebodyAnswered = self._somebodyAnswered or why is not None
            self._heard = self._heard or not isinstance(why, Unanswered)
            return why or connectionFailure(e), False
        if self._cancelled:
            connection.discard()
            raise CancelledError
        session = self._session = connection.session
        self.report.connections += 1
        self._somebodyAnswered = self._heard = True
        exchange = Exchange(
            self._reactor, session, self._jobs, self._request, self._reporter, self._inThread
        )
        transmission = Transmission(
            self._reactor, exchange, self._connections.open, self._furtherLanes
        )
        why = None
        try:
            await transmission.send()
        except TransferError as e:
            why = e
            connection.discard()
        except BaseException:
            connection.discard()
            raise
        else:
            connection.release()
        finally:
            self._session = None
            for job in exchange.takeUnanswered():
                if job.spent and not self._cancelled:
                    self._reporter.failed(
                        job, SourceError(f"standard input cannot be sent again: {why}")
                    )
                else:
                    self._jobs.again(job)
        return why, exchange.advanced

    def cancel(self) -> None:
        """
        Stop now.  The receiver keeps what it has of resumable files.
        """
        self._cancelled = True
        if self._session is not None:
            self._session.link.abort(Cancelled("interrupted"))

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
            for job, each in islice(self.report.underWay.items(), limit)
        )


def sendFiles(
    reactor: Any,
    endpoint: Any,
    paths: Iterable[str | Found],
    *,
    destination: str = "",
    ifExists: str = "",
    durability: str = "best",
    dry: bool = False,
    digests: Sequence[str] = ("blake3", "sha256"),
    credentials: Credentials | None = None,
    keys: SenderKeys | HeldRun | None = None,
    retry: Retry | None = None,
    answered: Callable[[FileOutcome], Any] = lambda _: None,
    pool: IConnectionPool | None = None,
    jobs: int = 1,
    stdinName: str = "stdin",
    choice: Choice | None = None,
    notSent: Callable[[Found], Any] = lambda _: None,
    begun: Callable[[Sending], Any] | None = None,
    idleTimeout: float = 60.0,
    pace: Pace | None = None,
    update: str = "",
    compress: str = "auto",
    growing: bool = False,
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
    @param stdinName: the name that the receiver gives to standard input.
    @param choice: of what is found under C{paths} (L{connpool.transfer.send.choosing});
        L{None} for all of it.
    @param notSent: called with each link, and all that C{choice} leaves out.
    @param begun: called first, with the L{Sending}, whose C{report} is kept up to date.
    @param idleTimeout: seconds of silence from the receiver that end a connection; a C{pool}'s
        are told to its C{SessionFactory}.
    @param pace: the most bytes a second (L{connpool.transfer.send.pace}); a C{pool}'s is told to
        its C{SessionFactory}, too.
    @param update: send only what the receiver does not have, or has not told of: by size and
        time (C{times}), or by content (C{checksum}); empty: all.
    @param compress: compress what shrinks: where that is faster (C{auto}), C{always} or C{never}.
    @param growing: send a file that only gets longer, such as a log, as it was when it was opened.
    @return: fires with the report, also when files failed.  Cancelling it stops
        sending; the receiver keeps what can be resumed.
    @raise SourceError: the state that files are resumed with is damaged.
    """
    if pool is not None:
        connections: Connections = Pooled(pool)
    else:
        factory = SessionFactory(reactor, digests, credentials, idleTimeout, pace)
        connections = Dialled(endpoint, factory)
    sending = Sending(
        reactor,
        connections,
        paths,
        destination,
        request=SendRequest(
            ifExists, durability, dry, update=update, compress=compress, growing=growing
        ),
        keys=keys,
        retry=retry,
        answered=answered,
        jobs=jobs,
        stdinName=stdinName,
        choice=choice,
        notSent=notSent,
        pace=pace,
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
