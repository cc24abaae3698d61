"""
A progress bar on a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self, TextIO

__all__ = ["Progress"]


class Progress:
    """
    Shows one file at a time.  A context manager: the bar is gone afterwards.

    @param stream: where to; a bar is drawn if it is a terminal.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            # imported here: a pipe does not pay for it
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
            from rich.progress import (
                Progress as Bar,
            )

            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
                # no thread of its own: it redraws when bytes move
                auto_refresh=False,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, name: str, size: int) -> None:
        """
        A file of C{size} bytes is on its way.

        @param name: fit to be displayed.
        """
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(name, total=size)
            self._drawn = 0.0

    def advance(self, count: int) -> None:
        """
        C{count} more bytes are sent.
        """
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count)
            now = self._bar.get_time()
            if now - self._drawn > 0.1:
                self._drawn = now
                self._bar.refresh()

    @property
    def drawn(self) -> bool:
        """
        Whether there is a bar.
        """
        return self._bar is not None

    def show(self, text: str, done: int, total: int | None) -> None:
        """
        How it goes with all of it.

        @param text: fit to be displayed.
        """
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(text, total=total)
            if total is not None:
                done = min(done, total)
            self._bar.update(self._task, description=text, completed=done, total=total)
            self._bar.refresh()

    def line(self, text: str) -> None:
        """
        Say something that stays.
        """
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()
