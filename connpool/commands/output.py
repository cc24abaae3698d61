"""
Output that may fail without stopping what it is about.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Self, TextIO

__all__ = ["CannotWrite", "JSONLines", "attempt", "complain", "show"]


class CannotWrite(Exception):
    """
    Standard output did not take what a command has to say.
    """


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


def show(text: str = "") -> None:
    """
    Print the result of a command, now, with all that was printed before.

    @raise CannotWrite: it cannot be written.
    @raise BrokenPipeError: the reader has had enough.
    """
    out = sys.stdout
    steps = [lambda: out.write(f"{text}\n")] if text else []
    error = attempt(out, *steps, out.flush)
    if isinstance(error, BrokenPipeError):
        raise error
    if error is not None:
        raise CannotWrite(f"cannot write to standard output: {error.strerror}") from error


def complain(text: str) -> None:
    """
    Print one line about what went wrong, as far as somebody takes it.
    """
    error = sys.stderr
    attempt(error, lambda: error.write(f"{text}\n"), error.flush)


class JSONLines:
    """
    A file that gets a line for each value, at once.

    @param name: its name for the user.
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

    def say(self, text: str) -> None:
        """
        Write a line that is no JSON.
        """
        self._attempt(lambda: self._file.write(f"{text}\n"), self._file.flush)

    def close(self) -> None:
        """
        Expect no more.
        """
        self._attempt(self._file.close)

    def _attempt(self, *steps: Callable[[], Any]) -> None:
        error = attempt(self._file, *steps)
        if error is not None and self.whole:
            self.whole = False
            self._failed(f"{self._name}: cannot write: {error.strerror}")
