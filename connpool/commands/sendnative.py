"""
C{connpool send} by the native protocol.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

import attrs
from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from connpool.commands.progress import Progress
from connpool.transfer.keys import SenderKeys
from connpool.transfer.names import displayName
from connpool.transfer.native.sender import SessionFactory, hello
from connpool.transfer.native.streams import Asked
from connpool.transfer.records import Receipt
from connpool.transfer.sending import FileOutcome, Sending, dialled, pooled
from connpool.transfer.walking import STDIN, walk

__all__ = ["sendNative"]

#: Seconds between two looks at how it goes.
_TICK = 0.1
#: Seconds between two lines about it where there is no terminal.
_LINES = 10.0


def sendNative(reactor: Any, endpoint: Any, arguments: argparse.Namespace) -> int:
    """
    Send, and say what became of it.

    @return: the exit code.
    """
    try:
        receipts = open(arguments.receipt, "a") if arguments.receipt else None  # noqa: SIM115
    except OSError as e:
        sys.stderr.write(f"connpool send: --receipt: {arguments.receipt}: {e.strerror}\n")
        return 2
    codes: list[int] = []
    with Progress() as progress:
        run = _Run(reactor, endpoint, arguments, progress, receipts)

        def start() -> None:
            d = Deferred.fromCoroutine(run.send())
            d.addCallbacks(codes.append, run.unexpected)
            d.addBoth(lambda _: reactor.stop())

        reactor.callWhenRunning(start)
        reactor.run(installSignalHandlers=True)
    if receipts is not None:
        receipts.close()
    return codes[0] if codes else 1


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
        receipts: TextIO | None,
    ) -> None:
        self._reactor = reactor
        self._arguments = arguments
        self._progress = progress
        self._receipts = receipts
        factory = SessionFactory(reactor, arguments.digests, arguments.credentials)
        self._pool: Any = None
        if arguments.jobs > 1:
            from connpool.pool import ConnectionPool

            self._pool = ConnectionPool(
                reactor, endpoint, factory, prepare=hello, maxSize=arguments.jobs, minIdle=0
            )
            connections = pooled(self._pool)
        else:
            connections = dialled(endpoint, factory)
        self._sending = Sending(
            reactor,
            connections,
            arguments.paths,
            # the spelling the user uses: what he repeats is what he resumes
            arguments.to,
            asked=Asked(arguments.if_exists, arguments.durability, arguments.dry_run),
            keys=SenderKeys(),
            answered=self._answered,
            jobs=arguments.jobs,
            stdinName=arguments.name,
        )
        self._resumable = self._sending.resumable
        self._total: tuple[int, int] | None = None
        self._shown = 0
        self._running: Deferred[Any] | None = None

    async def send(self) -> int:
        """
        @return: the exit code.
        """
        reactor, sending = self._reactor, self._sending
        began = time.monotonic()
        previous = signal.signal(signal.SIGINT, self._interrupt)
        signal.signal(signal.SIGTERM, self._interrupt)
        self._said = began
        look = task.LoopingCall(self._look)
        look.clock = reactor
        look.start(_TICK, now=False)
        reactor.callInThread(self._measure)
        self._running = Deferred.fromCoroutine(sending.send())
        try:
            await self._running
        except CancelledError:
            self._interrupted()
            return 130
        finally:
            signal.signal(signal.SIGINT, previous)
            look.stop()
            if self._pool is not None:
                await self._pool.close(timeout=5.0)
        self._summary(time.monotonic() - began)
        return sending.report.exitCode

    def unexpected(self, failure: Failure) -> None:
        """
        A bug of ours: said, not shown as a traceback.
        """
        from twisted.logger import Logger

        Logger().failure("sending failed", failure=failure)
        self._say(f"connpool send: internal error: {failure.value!r}")

    # -- what the user sees

    def _answered(self, outcome: FileOutcome) -> None:
        receipt = outcome.receipt
        if self._receipts is not None and receipt is not None:
            self._receipts.write(json.dumps(attrs.asdict(receipt)) + "\n")
        if self._arguments.json:
            sys.stdout.write(json.dumps(_asJSON(outcome)) + "\n")
        if receipt is None:
            if outcome.error is not None:
                self._say(f"connpool send: {outcome.name}: {outcome.error}")
            elif not self._arguments.json:
                self._say(f"{outcome.name}: would be taken")
        elif receipt.name != receipt.wanted:
            self._say(f"{outcome.name}: stored as {displayName(receipt.name)}")

    def _summary(self, seconds: float) -> None:
        report = self._sending.report
        if self._arguments.json:
            sys.stdout.flush()
        if self._receipts is not None:
            self._receipts.flush()
        receipts = [o.receipt for o in report.outcomes if o.receipt is not None]
        if not receipts:
            return
        short = [o for o in report.outcomes if o.receipt is not None and not o.good]
        if short:
            # one line, not one a file: it is the receiver's disk, not the files
            reached = short[0].receipt
            assert reached is not None
            self._say(
                f"connpool send: {len(short)} of {len(receipts)} stored, but at durability "
                f"{reached.durability} on {displayName(reached.filesystem)}, not "
                f"{short[0].asked}; --durability {reached.durability} accepts that"
            )
        count = f"{len(receipts)} file{'s' if len(receipts) != 1 else ''}"
        levels = sorted({receipt.durability for receipt in receipts})
        resumed = f", {_bytes(report.resumedBytes)} of it held before" * bool(report.resumedBytes)
        repeated = sum(receipt.status == "duplicate" for receipt in receipts)
        duplicates = f", {repeated} were there already" * bool(repeated)
        self._say(
            f"{count}, {_bytes(report.doneBytes)}{resumed} in {seconds:.2f} s "
            f"({_bytes(report.doneBytes / max(seconds, 1e-6))}/s){duplicates}; "
            f"{receipts[0].integrity} by {receipts[0].digest}, durability {'/'.join(levels)}"
        )

    def _interrupt(self, *ignored: Any) -> None:
        # in the signal handler: the reactor does the rest
        self._reactor.callFromThread(self._stop)

    def _stop(self) -> None:
        if self._running is not None:
            self._sending.cancel()
            self._running.cancel()

    def _interrupted(self) -> None:
        report = self._sending.report
        stored = sum(outcome.receipt is not None for outcome in report.outcomes)
        kept = ""
        if report.open and self._resumable and STDIN not in self._arguments.paths:
            name, size = next(iter(report.open.items()))
            kept = f"; the receiver keeps what it has of {name} (about {_bytes(size)})"
        self._say(
            f"connpool send: interrupted: {stored} stored{kept}; "
            "run the same command to go on from there"
        )

    def _look(self) -> None:
        report = self._sending.report
        done = report.sentBytes + report.resumedBytes
        total = self._total[1] if self._total is not None else None
        state = report.phase if report.phase in {"verify", "publish"} else ""
        slow = f"waiting for {report.slow}" * bool(report.slow)
        name = next(iter(report.open), "")
        text = " ".join(part for part in (name, state, slow) if part) or "sending"
        self._progress.show(text, done, total)
        now = time.monotonic()
        if not self._progress.drawn and now - self._said >= _LINES:
            self._said = now
            of = f" of {_bytes(total)}" if total is not None else ""
            self._say(f"{text}: {_bytes(done)}{of}")

    def _measure(self) -> None:
        """
        In a thread: how much there is.
        """
        total = _measured(self._arguments.paths)
        self._reactor.callFromThread(setattr, self, "_total", total)

    def _say(self, text: str) -> None:
        self._progress.line(text)


def _measured(paths: Sequence[str]) -> tuple[int, int] | None:
    """
    @return: files and bytes; L{None} if that is not known.
    """
    if STDIN in paths:
        return None
    files = size = 0
    for found in walk(paths):
        if found.error is None:
            try:
                size += os.stat(found.path).st_size
                files += 1
            except OSError:
                continue
    return files, size


def _asJSON(outcome: FileOutcome) -> dict[str, Any]:
    receipt: Receipt | None = outcome.receipt
    error = outcome.error
    return {
        "path": displayName(outcome.path),
        "name": outcome.name,
        "good": outcome.good,
        "receipt": None if receipt is None else attrs.asdict(receipt),
        "error": None if error is None else {"code": error.code, "text": str(error)},
    }


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
