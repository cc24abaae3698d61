"""
C{connpool send} by the native protocol.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import attrs
from twisted.internet import task
from twisted.internet.defer import CancelledError

from connpool.commands.output import JSONLines
from connpool.commands.progress import Progress, sized
from connpool.commands.running import INTERRUPTED, runUntilEnded
from connpool.commands.totals import RunTotals, measured
from connpool.errors import TransferError
from connpool.transfer.names import displayName
from connpool.transfer.records import Receipt
from connpool.transfer.send.client import FileOutcome, Sending, SendReport, sendFiles
from connpool.transfer.send.connections import SessionFactory, hello
from connpool.transfer.send.report import Wait
from connpool.transfer.send.walking import STDIN, Found, Walk

__all__ = ["sendNative"]

#: Seconds between two looks at how it goes.
_TICK_SECONDS = 0.1
#: Seconds after which it is found out how much there is: to count small files takes a good
#: part of the time that it takes to send them.
_COUNT_AFTER_SECONDS = 1.0
#: Seconds without a byte after which it is said what is waited for.
_STALLED_SECONDS = 2.0
#: Seconds between two lines about a wait for one and the same reason, after a few.
_REPEAT_SECONDS = 10.0
#: Seconds between two lines of progress for programs.
_PROGRESS_SECONDS = 10.0
#: Files that are named for one and the same reason.
_EXAMPLES = 3


def sendNative(
    reactor: Any, endpoint: Any, arguments: argparse.Namespace, progress: Progress
) -> int:
    """
    Send, and say what became of it.

    @return: the exit code.
    """
    outputs = {}
    if arguments.receipt is not None:
        try:
            outputs["receipt"] = JSONLines.append(arguments.receipt, "--receipt", progress.say)
        except OSError as e:
            progress.say(f"--receipt: {displayName(arguments.receipt)}: {e.strerror}")
            return 2
    if arguments.json:
        outputs["json"] = JSONLines(sys.stdout, "--json", progress.say)
    run = _Run(reactor, endpoint, arguments, progress, outputs)
    code = runUntilEnded(reactor, run.send, progress, run.stop)
    if arguments.receipt is not None:
        outputs["receipt"].close()
    return code or int(not all(output.whole for output in outputs.values()))


class _Run:
    """
    One call of the command.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: Any,
        arguments: argparse.Namespace,
        progress: Progress,
        outputs: Mapping[str, JSONLines],
    ) -> None:
        self._reactor = reactor
        self._arguments = arguments
        self._progress = progress
        self._outputs = outputs
        self._endpoint = endpoint
        self._pace = None
        if arguments.bwlimit:
            from connpool.transfer.send.pace import Pace

            self._pace = Pace(reactor, arguments.bwlimit)
        self._factory = SessionFactory(
            reactor,
            arguments.digests,
            arguments.credentials,
            idleTimeout=arguments.timeout,
            pace=self._pace,
        )
        self._sending: Sending
        self._choice = None
        if arguments.rules:
            from connpool.transfer.send.choosing import Choice

            self._choice = Choice(arguments.rules)
        self._fromStdin = arguments.files_from is None and STDIN in arguments.paths
        self._toldAt = time.monotonic()
        self._reasons: Counter[str] = Counter()
        self._waited: Wait | None = None
        #: how often each reason was said, and when
        self._waitsSaid: dict[str, tuple[int, float]] = {}
        self._moved: tuple[int, ...] = ()
        self._movedAt = time.monotonic()
        self._fewer = arguments.jobs == 1

    async def send(self) -> int:
        """
        Send until it is over.

        @return: the exit code.
        """
        reactor, arguments = self._reactor, self._arguments
        pool = None
        if arguments.jobs > 1:
            from connpool.pool import ConnectionPool

            pool = ConnectionPool(
                reactor,
                self._endpoint,
                self._factory,
                prepare=hello,
                maxSize=arguments.jobs,
                minIdle=0,
            )
        try:
            sent = sendFiles(
                reactor,
                self._endpoint,
                arguments.paths,
                # the spelling the user uses: what he repeats is what he resumes
                destination=os.fsencode(arguments.to).decode(errors="backslashreplace"),
                ifExists=arguments.if_exists,
                durability=arguments.durability,
                dry=arguments.dry_run,
                compress=arguments.compress,
                growing=arguments.growing,
                update=("checksum" if arguments.checksum else "times") * arguments.update,
                digests=arguments.digests,
                credentials=arguments.credentials,
                answered=self._answered,
                pool=pool,
                jobs=arguments.jobs,
                stdinName=arguments.name,
                choice=self._choice,
                notSent=self._notSent,
                begun=self._begun,
                idleTimeout=arguments.timeout,
                pace=self._pace,
            )
        except TransferError as e:
            self._progress.say(str(e))
            return e.exitCode
        began = time.monotonic()
        look = task.LoopingCall(self._look)
        look.clock = reactor
        look.start(_TICK_SECONDS, now=False)
        # a daemon: a large tree is not counted to its end if all is over
        counting = threading.Thread(target=self._measure, daemon=True)
        count = reactor.callLater(_COUNT_AFTER_SECONDS, counting.start)
        try:
            await sent
        except CancelledError:
            self._interrupted()
            return INTERRUPTED
        finally:
            look.stop()
            if count.active():
                count.cancel()
            self._sayFewer()
            if pool is not None:
                await pool.close(timeout=5.0)
        self._others()
        self._summary(time.monotonic() - began)
        return self._sending.report.exitCode

    def _begun(self, sending: Sending) -> None:
        self._sending = sending
        self._totals = RunTotals(sending.report, since=time.monotonic())
        self._resumable = sending.resumable

    def stop(self) -> None:
        """
        Stop, because the user interrupts.
        """
        self._sending.cancel()

    # -- what the user sees

    def _answered(self, outcome: FileOutcome) -> None:
        receipt = outcome.receipt
        if receipt is not None and "receipt" in self._outputs:
            self._outputs["receipt"].write(attrs.asdict(receipt))
        if "json" in self._outputs:
            self._outputs["json"].write(_asJSON(outcome))
        if outcome.status == "skipped":
            self._progress.line(f"{outcome.name}: skipped, there is another one already")
        elif outcome.error is not None:
            # refusals quote the name
            reason = str(outcome.error).replace(f'"{outcome.name}"', '"…"')
            self._reasons[reason] += 1
            if self._reasons[reason] <= _EXAMPLES:
                self._progress.say(f"{outcome.name}: {outcome.error}")
        elif receipt is None:
            if outcome.unchanged:
                return
            if not self._arguments.json:
                self._progress.line(f"{outcome.name}: would be taken")
        elif receipt.name != receipt.wanted:
            self._progress.line(f"{outcome.name}: stored as {displayName(receipt.name)}")

    def _notSent(self, found: Found) -> None:
        """
        Say in a dry run why something would not be asked about.
        """
        if not self._arguments.dry_run:
            return
        name, why = displayName(found.name or found.path), displayName(found.why) or found.kind
        if "json" in self._outputs:
            path = displayName(found.path)
            self._outputs["json"].write(_line("left-out", path=path, name=name, why=why, good=True))
        else:
            self._progress.line(f"{name}: would be left out ({why})")

    def _others(self) -> None:
        """
        Count the files that failed for a reason that was said often enough.
        """
        for reason, count in self._reasons.items():
            if count > _EXAMPLES:
                more = count - _EXAMPLES
                self._progress.say(f"{more} more file{'s' * (more > 1)}: {reason}")

    def _summary(self, seconds: float) -> None:
        report = self._sending.report
        self._besides(report)
        receipts = [
            o.receipt for o in report.outcomes if o.receipt is not None and o.status != "taken-away"
        ]
        if not receipts:
            return
        short = [o for o in report.outcomes if o.receipt is not None and not o.good]
        if short:
            # one line, not one a file: it is the receiver's disk, not the files
            reached = short[0].receipt
            assert reached is not None
            self._progress.say(
                f"{len(short)} of {len(receipts)} stored, but at durability "
                f"{reached.durability} on {displayName(reached.filesystem)}, not "
                f"{short[0].asked}; --durability {reached.durability} accepts that"
            )
        files = len(receipts)
        total = files + sum(outcome.status == "failed" for outcome in report.outcomes)
        count = f"{files}{f' of {total}' * (files < total)} file{'s' * (total > 1)}"
        levels = sorted({_level(receipt) for receipt in receipts})
        resumed = f", {sized(report.resumedBytes)} of it held before" * bool(report.resumedBytes)
        saved = sized(report.sentBytes - report.savedBytes)
        resumed += f", compressed to {saved}" * bool(report.savedBytes)
        resumed += f", {sized(report.holeBytes)} of it holes" * bool(report.holeBytes)
        repeated = sum(receipt.status == "duplicate" for receipt in receipts)
        were = "was" if repeated == 1 else "were"
        duplicates = f", {repeated} {were} there already" * bool(repeated)
        directories = f", {_many(report.directories, 'directory')}" * bool(report.directories)
        self._progress.line(
            f"{count}, {sized(report.doneBytes)}{resumed} in {seconds:.2f} s "
            f"({sized(report.doneBytes / max(seconds, 1e-6))}/s){duplicates}{directories}; "
            f"{receipts[0].integrity} by {receipts[0].digest}, durability {'/'.join(levels)}"
        )

    def _besides(self, report: SendReport) -> None:
        """
        Say the things that the count of stored files leaves out.
        """
        ends = Counter(outcome.status for outcome in report.outcomes)
        earlier = Counter(outcome.earlier for outcome in report.outcomes)
        for count, text in (
            (sum(o.grew for o in report.outcomes), "{} got longer meanwhile: sent as first seen"),
            (ends["unchanged"], "{}, unchanged at the receiver and not sent"),
            (ends["skipped"], "{}, skipped: another content has that name at the receiver"),
            (earlier["there"], "{}, stored by an earlier run and still there"),
            (earlier["gone"], "{}, stored by an earlier run and taken away at the receiver since"),
            (
                earlier["unknown"],
                "{}, stored by an earlier run; the receiver does not tell whether still there",
            ),
        ):
            if count:
                self._progress.line(text.format(_many(count, "file")))
        if report.cannotTell:
            were = "would be" if self._arguments.dry_run else "were"
            self._progress.line(f"the receiver cannot tell what it has: all files {were} sent")
        elif report.untold:
            self._progress.line(
                f"{_many(report.untold, 'file')} of which the receiver tells nothing (new, or not "
                "stored by the same user within a week), sent"
            )
        if report.directories and not report.outcomes:
            self._progress.line(f"{_many(report.directories, 'directory')}, no files")
        dry = self._arguments.dry_run
        # a dry run is about files, unless there are none
        leftOut = 0 if dry and report.outcomes else report.directoriesLeftOut
        if leftOut:
            why = (
                "not asked about in a dry run"
                if dry
                else "left out (empty ones, and the times of all): the receiver takes files only"
            )
            self._progress.line(f"{_many(leftOut, 'directory')} {why}")
        if report.passedOver:
            self._progress.line(f"{_many(report.passedOver, 'symbolic link')} passed over")
        if report.leftOut:
            self._progress.line(f"{report.leftOut} left out by patterns")
        if not (report.outcomes or report.directories or leftOut or report.passedOver):
            self._progress.line("nothing to send")
        if "json" in self._outputs and (
            report.directories or leftOut or report.passedOver or report.leftOut
        ):
            self._outputs["json"].write(
                _line(
                    "summary",
                    good=not report.failed,
                    files=len(report.outcomes),
                    directories=report.directories,
                    directoriesLeftOut=leftOut,
                    passedOver=report.passedOver,
                    leftOut=report.leftOut,
                )
            )

    def _interrupted(self) -> None:
        self._others()
        report = self._sending.report
        stored = sum(outcome.status in {"stored", "duplicate"} for outcome in report.outcomes)
        kept = ""
        name, size = max(report.open.items(), key=itemgetter(1), default=("", 0))
        if size and self._resumable and not self._fromStdin:
            kept = f"; the receiver keeps what it has of {name} (about {sized(size)})"
        self._progress.say(
            f"interrupted: {stored} stored{kept}; run the same command to go on from there"
        )

    def _look(self) -> None:
        report = self._sending.report
        wait = self._waiting()
        if wait is not None and wait != self._waited and self._isNews(wait):
            self._waited = wait
            self._sayWait(wait)
        self._sayFewer()
        slow = report.slow if wait is None else wait.what
        self._progress.show(self._totals.text(slow), report.progress, self._totals.size)
        now = time.monotonic()
        if "json" in self._outputs and now - self._toldAt >= _PROGRESS_SECONDS:
            self._toldAt = now
            self._outputs["json"].write(_line("progress", progress=self._totals.line(slow, now)))

    def _waiting(self) -> Wait | None:
        """
        @return: what is worth saying: the next try, or what has stopped all bytes for a
            while, not each pause of a receiver that keeps up.
        """
        report, now = self._sending.report, time.monotonic()
        moved = (report.sentBytes, report.progress, len(report.outcomes))
        if moved != self._moved:
            self._moved, self._movedAt = moved, now
        wait = report.wait
        if wait is not None and wait.until is not None:
            return wait
        if now - self._movedAt < _STALLED_SECONDS:
            return None
        if wait is None and report.connections and not self._fromStdin:
            return Wait("receiver", "the receiver's answer")
        return wait

    def _isNews(self, wait: Wait) -> bool:
        """
        @return: whether to say it: of one reason not more than a few, then one now and then.
        """
        # the reason quotes the name
        now, reason = time.monotonic(), wait.why.replace(f'"{wait.name}"', '"…"')
        count, at = self._waitsSaid.get(reason, (0, 0.0))
        if count >= _EXAMPLES and now - at < _REPEAT_SECONDS:
            return False
        self._waitsSaid[reason] = (count + 1, now)
        return True

    def _sayWait(self, wait: Wait) -> None:
        whose = f"{wait.name}: " * bool(wait.name)
        seconds = None
        if wait.until is None:
            self._progress.say(f"{whose}waiting for {wait.why}")
        else:
            seconds = round(max(0.0, wait.until - self._reactor.seconds()), 1)
            self._progress.say(f"{whose}{wait.why}; trying again in {seconds:g} s")
        if "json" in self._outputs:
            said = {"for": wait.what, "why": wait.why, "seconds": seconds}
            self._outputs["json"].write(_line("waiting", name=wait.name or None, wait=said))

    def _sayFewer(self) -> None:
        """
        Say once that the receiver takes fewer connections than were asked for.
        """
        if not self._sending.report.connections:
            # the first one was not let in: that is another matter
            self._factory.refusal = None
        why = self._factory.refusal
        if why is not None and not self._fewer:
            self._fewer = True
            self._progress.say(
                f"going on with fewer than {self._arguments.jobs} connections: {why}"
            )

    def _measure(self) -> None:
        """
        Find out, in a thread, how much there is.
        """
        if not self._fromStdin:
            self._totals.all = measured(Walk(self._arguments.paths, choice=self._choice))


def _many(count: int, thing: str) -> str:
    if count == 1:
        return f"1 {thing}"
    return f"{count} {thing[:-1]}ies" if thing.endswith("y") else f"{count} {thing}s"


def _level(receipt: Receipt) -> str:
    """
    @return: the durability that was reached, and what kept it from being more.
    """
    if receipt.durability == "full":
        return "full"
    return f"{receipt.durability} (on {displayName(receipt.filesystem)})"


def _line(status: str, **more: Any) -> dict[str, Any]:
    """
    @return: a line that is not about the outcome of a file, with the keys of those that are.
    """
    nothing = dict.fromkeys(
        ("path", "name", "earlier", "good", "asked", "grew", "receipt", "error")
    )
    return {**nothing, "status": status, **more}


def _asJSON(outcome: FileOutcome) -> dict[str, Any]:
    receipt: Receipt | None = outcome.receipt
    error = outcome.error
    return {
        "path": displayName(outcome.path),
        "name": outcome.name,
        "status": outcome.status,
        "earlier": outcome.earlier or None,
        "good": outcome.good,
        "asked": outcome.asked,
        "grew": outcome.grew,
        "receipt": None if receipt is None else attrs.asdict(receipt),
        "error": None if error is None else {"code": error.code, "text": str(error)},
    }
