"""
C{--on-received PROGRAM}: run a program for every file that was received.

The program gets the receipt as JSON on its standard input, nothing on its
command line and no shell, so no name is ever a part of a command.  At least
once for each file, across restarts; two at a time; a program that fails or
takes more than a minute is said so in the log and changes nothing.

A program that was never begun (it is not there, or there is no process left for
it) has failed nobody: its receipt comes first when it is tried again, after a
second and then after twice as long each time, up to a minute.
"""

from __future__ import annotations

import errno
import json
import os
from bisect import insort
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.logonce import LogOnce
from connpool.services.programs import NOT_BEGUN, OUTPUT_BYTES, BoundedRun, canRun
from connpool.transfer.receive.listener import TransferListener
from connpool.transfer.records import Receipt

__all__ = ["PROGRAMS_AT_ONCE", "TIME_LIMIT_SECONDS", "OnReceived"]

#: Programs that run at once.
PROGRAMS_AT_ONCE = 2

#: Seconds a program may take.
TIME_LIMIT_SECONDS = 60.0

#: Seconds before what could not be begun is tried again: at first, and at most.
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0

_Taken = tuple[Any, Receipt]


class _Run(BoundedRun):
    """
    One run of the program.

    @ivar ended: fires with why it failed; L{None} if it did not.
    @ivar begun: whether it was the program that ran.
    """

    begun = True

    def __init__(self, clock: Any, text: bytes) -> None:
        super().__init__(clock, TIME_LIMIT_SECONDS)
        self._text = text
        self._output = b""

    def connectionMade(self) -> None:
        super().connectionMade()
        transport: Any = self.transport
        transport.write(self._text)
        transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        if not self._output:
            self.begun = not data.startswith(NOT_BEGUN)
        # the end of what it says tells most; a gigabyte of it costs nothing
        self._output = (self._output + data)[-OUTPUT_BYTES:]

    errReceived = outReceived

    def over(self, reason: Failure) -> None:
        if reason.check(ProcessDone):
            self.begun = True
            self.ended.callback(None)
            return
        said = self._output.decode("utf-8", "backslashreplace").strip()
        why = "was killed" if self.killed else str(reason.value).rstrip(".")
        if not self.begun:
            self.ended.callback(said.splitlines()[-1])
        else:
            self.ended.callback(f"{why}; it said {said!r}" if said else why)


class OnReceived(TransferListener):
    """
    Runs a program for each receipt of an outbox.

    @param reactor: spawns processes, and times them.
    @param program: absolute path.
    @param directory: where the program runs; L{None} for wherever this does.
    @param placeOf: what the program is told beside a receipt.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        program: str,
        directory: str | None,
        outbox: Any,
        placeOf: Callable[[Receipt], Mapping[str, str]],
    ) -> None:
        self._reactor = reactor
        self._program = program
        self._directory = None if directory is None else os.path.abspath(directory)
        self._placeOf = placeOf
        self._outbox = outbox
        self._running: dict[_Run, Deferred[Any]] = {}
        #: taken and not begun, in their order
        self._again: list[_Taken] = []
        self._wait = 0.0
        self._trouble = LogOnce(lambda what: self._log.warn("--on-received: {what}", what=what))
        self._stopped = False
        self._next: Any = None

    def look(self) -> None:
        """
        Run the program for what is new, as far as there is room.
        """
        self._forget()
        while not self._stopped and len(self._running) < PROGRAMS_AT_ONCE:
            try:
                taken = self._again.pop(0) if self._again else self._outbox.take()
            except OSError as e:
                self._later(f"the list of what was received cannot be read: {e.strerror}")
                return
            if taken is None:
                return
            known = {**attrs.asdict(taken[1]), **self._placeOf(taken[1])}
            run = _Run(self._reactor, json.dumps(known).encode() + b"\n")
            self._running[run] = run.ended.addCallback(self._ended, run, taken)
            try:
                if not canRun(self._program):
                    raise OSError(errno.ENOENT, "it is gone or not executable; chmod +x it")
                self._reactor.spawnProcess(
                    run, self._program, [self._program], env=None, path=self._directory
                )
            except OSError as e:
                run.begun = False
                run.ended.callback(e.strerror)
                return

    def _ended(self, why: str | None, run: _Run, taken: _Taken) -> None:
        del self._running[run]
        if not run.begun:
            insort(self._again, taken, key=itemgetter(0))
            self._later(f"{self._program} cannot be run: {why}")
            return
        position, receipt = taken
        if self._stopped and why is not None:
            return  # we ended it: it comes again after the restart
        if why is not None:
            self._log.warn(
                "{program} for {name}: {why}, id {id}",
                program=self._program,
                name=receipt.name,
                why=why,
                id=receipt.transferId,
            )
        self._wait = 0.0
        try:
            self._outbox.told(position)
        except OSError as e:
            self._trouble.met(f"what the program was told cannot be noted: {e.strerror}")
        else:
            self._trouble.over()
        if not self._stopped and self._next is None:
            # not from here: a program that ends at once must not make this recurse
            self._next = self._reactor.callLater(0, self.look)

    def _later(self, why: str) -> None:
        """
        Look again after a while.
        """
        self._trouble.met(f"{why}; the files wait, trying again")
        if not self._stopped and self._next is None:
            self._wait = min(2 * self._wait or FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
            self._next = self._reactor.callLater(self._wait, self.look)

    def _forget(self) -> None:
        following, self._next = self._next, None
        if following is not None and following.active():
            following.cancel()

    async def stop(self) -> None:
        """
        Begin nothing new; what runs has L{TIME_LIMIT_SECONDS} seconds.
        """
        self._stopped = True
        self._forget()
        await DeferredList(list(self._running.values()))
        self._outbox.close()

    def published(self, receipt: Receipt) -> None:
        if self._next is None and not self._stopped:
            # a store writes down after this turn what need not be synced
            self._next = self._reactor.callLater(0, self.look)
