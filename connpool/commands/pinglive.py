"""
The lines of C{connpool ping} while it runs: answers, losses, and on a terminal a
line of counts when answers come faster than one reads.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from connpool.datagram import Sample

__all__ = ["Live", "complain"]

#: Seconds between answers at which each gets a line.
_READABLE_SECONDS = 0.1

#: Seconds between two lines of counts, and between two lines of losses.
_REFRESH_SECONDS = 0.2


def complain(text: str) -> None:
    """
    Write a line to standard error, if there is one that takes it.
    """
    try:
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)
    except OSError:
        pass  # closed, or full


def clockTime(nanoseconds: int) -> str:
    """
    @param nanoseconds: since the epoch.
    @return: local date and time to the millisecond.
    """
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    local = datetime.fromtimestamp(seconds, UTC).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S}.{rest // 1_000_000:03}"


class Live:
    """
    Shows samples.  Losses that follow one another closely share a line.

    @param arguments: of the command.
    @param targets: the number of them; with several each line names its own.
    """

    def __init__(self, arguments: argparse.Namespace, targets: int) -> None:
        each = arguments.interval / targets >= _READABLE_SECONDS
        self._each = each and not arguments.json
        self._json = arguments.json
        self._line = not each and _isTerminal(sys.stderr)
        self._total = arguments.count * targets
        self._several = targets > 1
        what = arguments.targets[0] if targets == 1 else f"{targets} targets"
        self._first = f"{what}: {arguments.size} bytes every {arguments.interval:g} s"
        self._begun = False
        self._shownAt = 0.0
        self._answers = 0
        self._losses: dict[str, list[Sample]] = {}
        self._saidAt = 0.0

    def begin(self) -> None:
        """
        Print the first line, once.

        @raise OSError: standard output takes no more.
        """
        if not self._begun and not self._json:
            print(self._first, flush=True)
        self._begun = True

    def sample(self, target: str, sample: Sample) -> None:
        """
        Show an answer, or a loss.

        @raise OSError: standard output takes no more.
        """
        self.begin()
        if sample.status == "received":
            self._answered(target, sample)
        elif sample.status in {"lost", "unsent"}:
            losses = self._losses.setdefault(target, [])
            if losses and (losses[-1].status, losses[-1].number + 1, losses[-1].error) != (
                sample.status,
                sample.number,
                sample.error,
            ):
                self._say(target)
                losses = self._losses.setdefault(target, [])
            losses.append(sample)
        if self._losses and time.monotonic() - self._saidAt >= _REFRESH_SECONDS:
            self._sayAll()

    def _answered(self, target: str, sample: Sample) -> None:
        self._answers += 1
        assert sample.rtt is not None
        if self._each:
            self._sayAll()
            print(f"{self._name(target)}#{sample.number}  {sample.rtt * 1e3:.3f} ms", flush=True)
        elif self._line and time.monotonic() - self._shownAt > _REFRESH_SECONDS:
            self._shownAt = time.monotonic()
            of = f" of {self._total}" if self._total else ""
            self._terminal(f"\r{self._answers}{of} answers, {sample.rtt * 1e3:.3f} ms ")

    def _name(self, target: str) -> str:
        return f"{target}  " if self._several else ""

    def _sayAll(self) -> None:
        for target in list(self._losses):
            self._say(target)

    def _say(self, target: str) -> None:
        losses = self._losses.pop(target)
        first, last = losses[0], losses[-1]
        numbers = f"#{first.number}"
        if len(losses) > 1:
            numbers += f" to #{last.number}"
        why = f"not sent ({first.error})" if first.status == "unsent" else "lost"
        when = clockTime(first.sentAt)
        if len(losses) > 1:
            when += f" to {clockTime(last.sentAt)}"
        words = f"{self._name(target)}{numbers}  {why}, sent at {when}"
        if first.status == "unsent":
            words = f"{self._name(target)}{numbers}  {why} at {when}"
        self._clear()
        if self._json:
            complain(words)
        else:
            print(words, flush=True)
        self._saidAt = time.monotonic()

    def _clear(self) -> None:
        if self._line and self._answers:
            self._terminal("\r\033[K")

    def _terminal(self, text: str) -> None:
        try:
            print(text, end="", file=sys.stderr, flush=True)
        except OSError:
            self._line = False  # gone

    def end(self) -> None:
        """
        Print the losses that are left, and leave the line of counts.

        @raise OSError: standard output takes no more.
        """
        self._sayAll()
        self._clear()


def _isTerminal(file: TextIO | None) -> bool:
    # a supervisor may have closed it
    return file is not None and not file.closed and file.isatty()
