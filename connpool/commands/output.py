"""
Output that may fail without stopping what it is about.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, Self, TextIO

__all__ = ["JSONLines", "attempt"]


def attempt(file: TextIO, *steps: Callable[[], Any]) -> OSError | None:
    """
    Write to C{file}.  After a failure, what it has buffered and all that follows
    goes nowhere.

    @return: the failure.
    """
    try:
        for step in steps:
            step()
    except OSError as e:
        if not file.closed:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, file.fileno())
            os.close(null)
        return e
    return None


class JSONLines:
    """
    A file that gets a line for each value, at once.

    @param name: what the user calls it.
    @param failed: called with the first failure, one line.
    @ivar whole: whether all lines were written.
    """

    def __init__(self, file: TextIO, name: str, failed: Callable[[str], Any]) -> None:
        self._file = file
        self._name = name
        self._failed = failed
        self.whole = True

    @classmethod
    def append(cls, path: str, name: str, failed: Callable[[str], Any]) -> Self:
        """
        @raise OSError: it cannot be opened.
        """
        # a FIFO without a reader must not keep us waiting
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o666)
        os.set_blocking(fd, True)
        return cls(open(fd, "a"), name, failed)

    def write(self, value: Any) -> None:
        """
        @param value: plain.
        """
        line = json.dumps(value) + "\n"
        self._attempt(lambda: self._file.write(line), self._file.flush)

    def close(self) -> None:
        """
        No more is coming.
        """
        self._attempt(self._file.close)

    def _attempt(self, *steps: Callable[[], Any]) -> None:
        error = attempt(self._file, *steps)
        if error is not None and self.whole:
            self.whole = False
            self._failed(f"{self._name}: cannot write: {error.strerror}")
