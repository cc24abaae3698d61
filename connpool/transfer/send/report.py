"""
The report of a sending: the outcome of each file, what is under way, what is waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from connpool.errors import ConnpoolError, NetworkFailed, Skipped, TransferError
from connpool.transfer.names import displayName
from connpool.transfer.records import DURABILITIES, Receipt
from connpool.transfer.send.joblist import Job
from connpool.transfer.send.session import SenderSession
from connpool.transfer.send.walking import LINK, Found
from connpool.transfer.wire.messages import Ack, ReceiptMessage

if TYPE_CHECKING:
    from connpool.transfer.send.pace import Pace

__all__ = ["FileOutcome", "Reporter", "SendReport", "UnderWay", "Wait", "waitAfter"]


@attrs.frozen
class FileOutcome:
    """
    The outcome of one file.

    @ivar path: of the source.
    @ivar name: what the receiver was to call it, fit to be displayed.
    @ivar receipt: if it is stored.
    @ivar error: if it is not.  Both are L{None} in a dry run: it would be taken.
    @ivar asked: the durability that was asked for.
    @ivar earlier: of a file that an earlier, interrupted run had stored already: C{there},
        C{gone} if it was taken away at the receiver since then, C{unknown} if the receiver
        cannot tell; empty if it was stored now.
    @ivar unchanged: whether it was not sent, because the receiver has it.
    @ivar grew: whether it got longer meanwhile, and was sent as it was at first.
    """

    path: str
    name: str
    receipt: Receipt | None = None
    error: ConnpoolError | None = None
    asked: str = "best"
    earlier: str = ""
    unchanged: bool = False
    grew: bool = False

    @property
    def status(self) -> str:
        """
        C{stored}, C{duplicate}, C{taken-away} (stored by an earlier run, and not there any
        more), C{unchanged}, C{skipped}, C{failed} or C{would-be-taken}.
        """
        if self.unchanged:
            return "unchanged"
        if self.receipt is not None:
            return "taken-away" if self.earlier == "gone" else self.receipt.status
        if self.error is None:
            return "would-be-taken"
        return "skipped" if isinstance(self.error, Skipped) else "failed"

    @property
    def good(self) -> bool:
        """
        True if it is stored at the level that was asked for, would be taken, or was skipped
        by the rule.
        """
        if self.receipt is None:
            return self.status != "failed"
        wanted = 0 if self.asked == "best" else DURABILITIES.index(self.asked)
        return DURABILITIES.index(self.receipt.durability) >= wanted


@attrs.define(eq=False)
class UnderWay:
    """
    A large file that was begun and not answered.

    @ivar sent: bytes sent or held.
    @ivar holes: those that were told as holes.
    @ivar saved: bytes that compression kept off the network.
    @ivar phase: what the receiver says it is doing.
    @ivar slow: what the receiver says it waits for.
    """

    job: Job
    sent: int = 0
    phase: str = ""
    slow: str = ""
    holes: int = 0
    saved: int = 0

    @property
    def done(self) -> int:
        # what was damaged is sent again, and counted again
        return self.sent if self.job.size is None else min(self.sent, self.job.size)


#: What a receiver may say that it waits for, for people.
_WAITS_FOR = {
    "disk": "the receiver's disk",
    "hook": "a program of the receiver",
    "place": "a place: the receiver takes no more files at once",
    "quota": "the receiver's quota",
    "rate": "the receiver's limit of bytes a second",
}


@attrs.frozen
class Wait:
    """
    Something that is waited for.

    @ivar what: C{network}, C{place}, C{disk}, C{quota}, C{rate}, C{hook}, or another word that
        the receiver says.
    @ivar why: the reason, for people.
    @ivar name: the file that waits, fit to be displayed; empty for all of them.
    @ivar until: when it is tried again, in the reactor's seconds; L{None} if nobody knows.
    """

    what: str
    why: str
    name: str = ""
    until: float | None = None


def waitAfter(why: TransferError, name: str, until: float) -> Wait:
    """
    Wait for another try after an error.
    """
    kinds = {"no-space": "disk", "quota": "quota", "busy": "place", "held": "hook"}
    kind = "network" if why.exitCode == NetworkFailed.exitCode else why.code
    return Wait(kinds.get(why.code, kind), str(why), name, until)


@attrs.define
class SendReport:
    """
    The report of a sending, kept up to date while it goes.

    @ivar outcomes: in the order of the answers.
    @ivar sentBytes: content bytes given to connections, repetitions included.
    @ivar savedBytes: bytes of C{sentBytes} that compression kept off the network.
    @ivar unchanged: files that were not sent, because the receiver has them.
    @ivar untold: files that were sent because the receiver tells nothing of them.
    @ivar cannotTell: whether it is a receiver that never does.
    @ivar holeBytes: bytes of holes, which receivers were told of in their place.
    @ivar resumedBytes: content bytes the receiver held when this call began with their files.
    @ivar doneBytes: bytes of files that are stored.
    @ivar connections: how many were made.
    @ivar directories: directories that are there now, with their times.
    @ivar directoriesLeftOut: directories that were not made and whose times were not set:
        the receiver takes none, or this was a dry run.
    @ivar passedOver: symbolic links inside of directories.
    @ivar leftOut: what the user chose to leave out; a directory with all below it counts once.
    @ivar underWay: files that were begun and had no answer.
    @ivar retry: why the next connection is waited for.
    @ivar slowed: what the receiver says that small files wait for.
    @ivar delayed: files that are offered again later, and why.
    @ivar pace: of what is sent; L{None} for no limit.
    """

    outcomes: list[FileOutcome] = attrs.Factory(list)
    sentBytes: int = 0
    resumedBytes: int = 0
    doneBytes: int = 0
    connections: int = 0
    directories: int = 0
    directoriesLeftOut: int = 0
    passedOver: int = 0
    leftOut: int = 0
    underWay: dict[Job, UnderWay] = attrs.field(factory=dict, repr=False)
    slowed: str = attrs.field(default="", repr=False)
    retry: Wait | None = attrs.field(default=None, repr=False)
    delayed: dict[Job, Wait] = attrs.field(factory=dict, repr=False)
    pace: Pace | None = attrs.field(default=None, repr=False)
    holeBytes: int = 0
    savedBytes: int = 0
    unchanged: int = 0
    untold: int = 0
    cannotTell: bool = False

    @property
    def progress(self) -> int:
        """
        Bytes of files that are stored, and bytes sent or held of those begun.
        """
        return self.doneBytes + sum(each.done for each in self.underWay.values())

    @property
    def open(self) -> dict[str, int]:
        """
        Names of large files begun and not answered, fit to be displayed, to bytes sent or held;
        those that wait for the receiver last.
        """
        return {displayName(each.job.name): each.done for each in self._shown()}

    @property
    def phase(self) -> str:
        """
        The receiver's word for what it is doing with the first of L{open}.
        """
        return next((each.phase for each in self._shown()), "")

    @property
    def slow(self) -> str:
        """
        The receiver's word for what the first of L{open} waits for.
        """
        return next((each.slow for each in self._shown()), "")

    @property
    def wait(self) -> Wait | None:
        """
        The latest reason of the receiver, the network or our own pace to wait; L{None} if
        there is none.
        """
        if self.retry is not None or self.delayed:
            return self.retry or next(iter(self.delayed.values()))
        if self.pace is not None and self.pace.waiting:
            return Wait("bwlimit", "the limit of --bwlimit")
        for each in self._shown():
            if each.slow:
                why = _WAITS_FOR.get(each.slow, each.slow)
                return Wait(each.slow, why, displayName(each.job.name))
        if self.slowed:
            return Wait(self.slowed, _WAITS_FOR.get(self.slowed, self.slowed))
        return None

    def _shown(self) -> list[UnderWay]:
        return sorted(self.underWay.values(), key=lambda each: not each.sent)

    @property
    def failed(self) -> list[FileOutcome]:
        """
        The files that are not stored as asked.
        """
        return [outcome for outcome in self.outcomes if not outcome.good]

    @property
    def exitCode(self) -> int:
        """
        For a command: 0 if every file reached the level asked for; the code all failures
        share; else 3.
        """
        codes = {
            outcome.error.exitCode if outcome.error is not None else 3 for outcome in self.failed
        }
        if not codes:
            return 0
        return codes.pop() if len(codes) == 1 else 3


class Reporter:
    """
    Keeps a L{SendReport} up to date.

    @param durability: the level that is asked for.
    @param answered: called with each L{FileOutcome}.
    @param notSent: called with each link, and all that was left out.
    """

    def __init__(
        self,
        durability: str,
        answered: Callable[[FileOutcome], Any],
        notSent: Callable[[Found], Any] = lambda _: None,
    ) -> None:
        self._durability = durability
        self._answered = answered
        self._notSent = notSent
        self.report = SendReport()

    def stored(
        self,
        job: Job,
        message: ReceiptMessage | Ack,
        root: bytes | None,
        size: int,
        session: SenderSession,
        earlier: str = "",
    ) -> None:
        """
        Note that a file has its receipt.
        """
        report = self.report
        name = wanted = job.name.decode("utf-8")
        status, integrity, digest = "stored", "verified", session.digest.name
        if not isinstance(message, Ack):
            name = message.name.decode("utf-8", "replace")
            status, integrity = message.status, message.integrity
            digest = digest if message.digest is None else message.digest
        underWay = report.underWay.get(job)
        # by position: there are many, and names would take twice as long
        receipt = Receipt(
            job.transferId.hex(),
            name,
            wanted,
            size,
            status,
            message.durability,
            message.filesystem,
            integrity,
            digest,
            root.hex() if root is not None else None,
            "native",
            session.principal,
            message.finished / 1000,
            None,
            0 if underWay is None else min(underWay.holes, size),
            0 if underWay is None else min(underWay.saved, size),
        )
        if earlier != "gone":
            report.doneBytes += size
        report.slowed = ""
        self._outcome(job, receipt, None, earlier)

    def failed(self, job: Job, why: TransferError) -> None:
        """
        Note that a file is not going to be stored.
        """
        self._outcome(job, None, why)

    def unchanged(self, job: Job) -> None:
        """
        Note that the receiver has a file.
        """
        self.report.unchanged += 1
        self._outcome(job, unchanged=True)

    def untold(self, count: int) -> None:
        """
        Count files of which the receiver tells nothing.
        """
        self.report.untold += count

    def cannotTell(self) -> None:
        """
        Note that the receiver cannot tell what it has.
        """
        self.report.cannotTell = True

    def passedOver(self, found: Found) -> None:
        """
        Count a link, or what was left out: neither is sent.
        """
        if found.kind == LINK:
            self.report.passedOver += 1
        else:
            self.report.leftOut += 1
        self._notSent(found)

    def directoryMade(self) -> None:
        """
        Count a directory that is there, with its time.
        """
        self.report.directories += 1

    def directoriesLeftOut(self, count: int) -> None:
        """
        Count directories that the receiver is not asked for.
        """
        self.report.directoriesLeftOut += count

    def wouldTake(self, job: Job) -> None:
        """
        Note the answer of a dry run.
        """
        self._outcome(job)

    def sentWhole(self, jobs: Sequence[Job], size: int) -> None:
        """
        Count files that were given to a connection, each in one piece.

        @param size: bytes of all.
        """
        self.report.sentBytes += size
        for job in jobs if self.report.delayed else ():
            self.report.delayed.pop(job, None)

    def sent(self, job: Job, count: int) -> None:
        """
        Count bytes that were given to a connection.
        """
        self.report.delayed.pop(job, None)
        self.report.sentBytes += count
        if job.size is None or job in self.report.underWay:
            self._of(job).sent += count

    def skipped(self, job: Job, count: int) -> None:
        """
        Count bytes of a hole that was told to the receiver.
        """
        self.report.delayed.pop(job, None)
        self.report.holeBytes += count
        each = self._of(job)
        each.sent += count
        each.holes += count

    def saved(self, job: Job, count: int) -> None:
        """
        Count bytes that compression keeps off the network.
        """
        self.report.savedBytes += count
        self._of(job).saved += count

    def resumed(self, job: Job, count: int) -> None:
        """
        Note that the receiver takes a file, and holds some of it already.
        """
        self.report.underWay[job] = UnderWay(job, count)
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
        self.report.underWay.pop(job, None)
        self.report.delayed[job] = waitAfter(why, displayName(job.name), due)

    def phase(self, job: Job, phase: str, slow: str) -> None:
        """
        Note the phase that the receiver is in.
        """
        each = self._of(job)
        each.phase, each.slow = phase, displayName(slow)

    def _of(self, job: Job) -> UnderWay:
        return self.report.underWay.setdefault(job, UnderWay(job))

    def _outcome(
        self,
        job: Job,
        receipt: Receipt | None = None,
        error: ConnpoolError | None = None,
        earlier: str = "",
        *,
        unchanged: bool = False,
    ) -> None:
        report, name = self.report, displayName(job.name or job.path)
        report.underWay.pop(job, None)
        if job.held is not None:
            job.letGo()
        report.delayed.pop(job, None)
        outcome = FileOutcome(
            *(job.path, name, receipt, error, self._durability, earlier, unchanged),
            grew=job.grew,
        )
        report.outcomes.append(outcome)
        self._answered(outcome)
