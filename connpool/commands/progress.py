"""
A progress bar on a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

from connpool.commands.output import attempt

__all__ = ["Progress", "sized"]

#: Seconds between two pictures of the bar,
_PICTURE_SECONDS = 0.05
#: and between two lines where there is none.
_LINE_SECONDS = 10.0


def sized(count: float) -> str:
    """
    @return: C{count} bytes for people.
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


class Progress:
    """
    The progress of a command, and lines that stay, on standard error.  Text that
    cannot be written is lost.  A context manager: the bar is gone afterwards.

    @param bar: draw one, if standard error is a terminal.
    @param command: the one that says what is wrong.
    """

    def __init__(self, bar: bool = True, command: str = "send") -> None:
        self._command = command
        # none at all if it is closed
        self._stream: TextIO | None = sys.stderr
        self._wanted = bar
        self._bar: Any = None
        self._task: Any = None
        self._shown = 0.0
        self._done = 0

    def __enter__(self) -> Self:
        self._shown = time.monotonic()
        if self._wanted and self._stream is not None and self._stream.isatty():
            # imported here: a pipe does not pay for it
            from rich import progress as rich
            from rich.console import Console

            self._bar = rich.Progress(
                rich.TextColumn("{task.description}", markup=False),
                rich.BarColumn(),
                rich.DownloadColumn(binary_units=True),
                rich.TransferSpeedColumn(),
                rich.TimeRemainingColumn(),
                console=Console(file=self._stream, markup=False, emoji=False, highlight=False),
                # no thread of its own: it redraws when bytes move
                auto_refresh=False,
                transient=True,
                # standard output is not ours to take
                redirect_stdout=False,
                redirect_stderr=False,
            )
            attempt(self._stream, self._bar.start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """
        Remove the bar; lines can still be said.
        """
        bar, self._bar = self._bar, None
        if bar is not None:
            attempt(bar.console.file, bar.stop)

    def show(self, text: str, done: int, total: int | None) -> None:
        """
        Show how far all of it is; often called, seldom shown.

        @param text: fit to be displayed.
        @param total: bytes; L{None} if not known.
        """
        now = time.monotonic()
        seconds = now - self._shown
        if seconds < (_LINE_SECONDS if self._bar is None else _PICTURE_SECONDS):
            return
        self._shown = now
        if total is not None:
            # what is sent again counts again, and files grow
            done = min(done, total)
        if self._bar is None:
            of = f" of {sized(total)}" if total is not None else ""
            rate = f", {sized((done - self._done) / seconds)}/s" if done > self._done else ""
            self._done = done
            self.line(f"{text}: {sized(done)}{of}{rate}")
            return
        if self._task is None:
            self._task = self._bar.add_task(text, total=total)
        self._bar.update(self._task, description=text, completed=done, total=total)
        attempt(self._bar.console.file, self._bar.refresh)

    def say(self, text: str) -> None:
        """
        Say what is wrong.
        """
        self.line(f"connpool {self._command}: {text}")

    def line(self, text: str) -> None:
        """
        Say something that stays.
        """
        stream, bar = self._stream, self._bar
        if bar is not None:
            attempt(bar.console.file, lambda: bar.console.print(text, soft_wrap=True))
        elif stream is not None:
            attempt(stream, lambda: stream.write(f"{text}\n"), stream.flush)
