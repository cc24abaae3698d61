"""
Totals of a run of many files, for people and for programs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Any

import attrs

from connpool.transfer.send.report import SendReport
from connpool.transfer.send.walking import FILE, Found

__all__ = ["RunTotals", "Totals", "measured"]


@attrs.frozen
class Totals:
    """
    @ivar files: how many there are.
    @ivar size: their bytes.
    """

    files: int
    size: int


def measured(walk: Iterable[Found]) -> Totals:
    """
    Count the files that are found, and add up their bytes.
    """
    files = size = 0
    for found in walk:
        if found.error is None and found.kind == FILE:
            files += 1
            with contextlib.suppress(OSError):
                size += os.stat(found.path).st_size
    return Totals(files, size)


@attrs.define(eq=False)
class RunTotals:
    """
    The part of a run that is done, now.

    @ivar report: of the run.
    @ivar all: of it; L{None} while it is being counted, and if it cannot be.
    @param since: seconds at its begin.
    """

    report: SendReport
    all: Totals | None = None
    _since: float = 0.0
    _before: int = 0

    @property
    def size(self) -> int | None:
        """
        Bytes of all; L{None} if not known.
        """
        return None if self.all is None else self.all.size

    def text(self, slow: str) -> str:
        """
        Say which files are on their way, and how many were answered if there are several.

        @param slow: a word for what is waited for; may be empty.
        """
        report, done = self.report, len(self.report.outcomes)
        parts = []
        if self.all is not None and self.all.files > 1:
            parts.append(f"{min(done, self.all.files)} of {self.all.files} files")
        elif self.all is None and done:
            parts.append(f"{done} file{'s' * (done > 1)}")
        state = report.phase if report.phase in {"verify", "publish"} else ""
        name = next(iter(report.open), "")
        parts.append(" ".join(word for word in (name, state) if word))
        parts.append(f"waiting for {slow}" * bool(slow))
        begun = "sending" if report.connections else "connecting"
        return ", ".join(part for part in parts if part) or begun

    def line(self, slow: str, now: float) -> dict[str, Any]:
        """
        Say the same as a value, with the rate since the last time.

        @param now: in seconds.
        """
        report = self.report
        since, before = self._since, self._before
        self._since, self._before = now, report.progress
        return {
            "files": len(report.outcomes),
            "filesTotal": None if self.all is None else self.all.files,
            "bytes": report.progress,
            "bytesTotal": self.size,
            "rate": round(max(0, report.progress - before) / (now - since)) if now > since else 0,
            "slow": slow or None,
            "underWay": next(iter(report.open), None),
        }
