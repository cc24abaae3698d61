"""
The running of an operator's programs: C{--on-received} and C{--before-publish}.

A program gets nothing on its command line and no shell, so no name is ever a part of a
command, and it does not run for longer than it may.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from connpool.errors import WrongSetting

__all__ = [
    "LAST_WORDS_SECONDS",
    "NOT_BEGUN",
    "OUTPUT_BYTES",
    "BoundedRun",
    "asProgram",
    "canRun",
]

#: Seconds after its end in which its output is still read.
LAST_WORDS_SECONDS = 0.5

#: Bytes of a program's output that are kept for the log.
OUTPUT_BYTES = 1000

#: What Twisted's child says if it cannot become the program.
NOT_BEGUN = b"Upon execvpe "


def asProgram(text: str) -> str:
    """
    @return: the absolute path of a program.
    @raise WrongSetting: if it cannot be run.
    """
    path = os.path.abspath(text)
    if not canRun(path):
        raise WrongSetting(f"{text!r} is not a program that can be run; chmod +x it")
    return path


def canRun(path: str) -> bool:
    """
    Tell whether a program is there and may be run.
    """
    return os.path.isfile(path) and os.access(path, os.X_OK)


class BoundedRun(ProcessProtocol):
    """
    One run of a program, which is killed when it has taken too long.

    @param seconds: that it may take.
    @ivar killed: the reason why it was killed; empty if it was not.
    @ivar ended: for L{over} to fire.
    """

    def __init__(self, clock: Any, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self.killed = ""
        self.ended: Deferred[str | None] = Deferred()

    def connectionMade(self) -> None:
        self._late = self._clock.callLater(
            self._seconds, self.kill, f"it took more than {self._seconds:g} s"
        )

    def kill(self, why: str) -> None:
        """
        End it.
        """
        transport: Any = self.transport
        with suppress(ProcessExitedAlready):  # then it has said what it thinks
            transport.signalProcess("KILL")
            self.killed = why

    def processExited(self, reason: Failure) -> None:
        # what it started may keep its output open for as long as it likes
        if self._late.active():
            self._late.cancel()
        transport: Any = self.transport
        self._late = self._clock.callLater(LAST_WORDS_SECONDS, transport.loseConnection)

    def processEnded(self, reason: Failure) -> None:
        if self._late.active():
            self._late.cancel()
        self.over(reason)

    def over(self, reason: Failure) -> None:
        """
        Decide by how it ended and what it said.
        """
        raise NotImplementedError  # each program's end means something else
