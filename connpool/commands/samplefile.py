"""
C{--samples FILE}: the fate of each datagram, as CSV or JSON lines.
"""

from __future__ import annotations

import csv
import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from connpool.errors import AddressError, ProbeFailed

if TYPE_CHECKING:
    from connpool.datagram import Sample

__all__ = ["SampleFile", "formatOf"]

COLUMNS = (
    "target",
    "number",
    "status",
    "sent",
    "lateness",
    "rtt",
    "there",
    "back",
    "remote",
    "error",
)

_SUFFIXES = {".csv": "csv", ".jsonl": "json", ".ndjson": "json"}


def formatOf(path: str) -> str:
    """
    @return: C{csv} or C{json}, by the file's suffix.
    @raise AddressError: it has neither suffix.
    """
    try:
        return _SUFFIXES[os.path.splitext(path)[1].lower()]
    except KeyError:
        raise AddressError(
            f"--samples {path}: name it .csv for CSV or .jsonl for JSON lines"
        ) from None


def instant(nanoseconds: int) -> str:
    """
    @param nanoseconds: since the epoch.
    @return: ISO 8601, UTC, to the microsecond.
    """
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    whole = datetime.fromtimestamp(seconds, UTC)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06}Z"


class SampleFile:
    """
    Writes a line for each sample, at once.

    @raise AddressError: C{path} has neither suffix.
    @raise ProbeFailed: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._json = formatOf(path) == "json"
        self._path = path
        # a FIFO without a reader must not keep us waiting
        flags = os.O_WRONLY | os.O_TRUNC | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o666)
        except OSError as e:
            raise ProbeFailed(f"--samples: cannot write {path}: {e.strerror}") from None
        os.set_blocking(fd, True)
        self._file = open(fd, "w", buffering=1, encoding="utf-8", newline="")  # noqa: SIM115 - closed in close()
        self._csv = csv.writer(self._file, lineterminator="\n")
        self._why = ""
        if not self._json:
            self._attempt(COLUMNS)

    def write(self, target: str, sample: Sample) -> None:
        """
        @param target: as the user wrote it.
        """
        self._attempt(
            (
                target,
                sample.number,
                sample.status,
                instant(sample.sentAt),
                sample.lateness,
                sample.rtt,
                sample.up,
                sample.down,
                sample.remote,
                sample.error,
            )
        )

    def _attempt(self, values: tuple[Any, ...]) -> None:
        if self._why:
            return
        try:
            if self._json:
                line = json.dumps(dict(zip(COLUMNS, values, strict=True)), ensure_ascii=False)
                self._file.write(f"{line}\n")
            else:
                self._csv.writerow(values)
        except OSError as e:
            self._why = e.strerror or str(e)

    def close(self) -> None:
        """
        No more is coming.
        """
        try:
            self._file.close()
        except OSError as e:
            self._why = self._why or e.strerror or str(e)

    def check(self) -> None:
        """
        @raise ProbeFailed: not all lines were written.
        """
        if self._why:
            raise ProbeFailed(f"--samples: cannot write {self._path}: {self._why}")
