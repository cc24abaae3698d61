"""
C{--on-received PROGRAM}: run a program for every file that was received.

The program gets the receipt as JSON on its standard input, nothing on its
command line and no shell, so no name is ever a part of a command.  At least
once for each file, across restarts; two at a time; a program that fails or
takes more than a minute is said so in the log and changes nothing.
"""

from __future__ import annotations

import json
import os
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.interfaces import ITransferListener
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.received import ReceivedOutbox

__all__ = ["AT_ONCE", "TIME_LIMIT", "OnReceived", "asProgram"]

#: Programs that run at once.
AT_ONCE = 2

#: Seconds a program may take.
TIME_LIMIT = 60.0

#: Seconds after its end in which its output is still read.
LAST_WORDS = 0.5

#: Bytes of a program's output that are kept for the log.
OUTPUT = 1000


def asProgram(text: str) -> str:
    """
    @return: the absolute path of a program.
    @raise ValueError: if it cannot be run.
    """
    path = os.path.abspath(text)
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        raise ValueError(f"{text!r} is not a program that can be run; chmod +x it")
    return path


class _Run(ProcessProtocol):
    """
    One run of the program.

    @ivar ended: fires with why it failed; L{None} if it did not.
    """

    def __init__(self, clock: Any, text: bytes) -> None:
        self._text = text
        self._output = b""
        self._clock = clock
        self.ended: Deferred[str | None] = Deferred()

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self._late = self._clock.callLater(TIME_LIMIT, self.kill)
        self._killed = False
        transport.write(self._text)
        transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        # the end of what it says tells most; a gigabyte of it costs nothing
        self._output = (self._output + data)[-OUTPUT:]

    errReceived = outReceived

    def kill(self) -> None:
        """
        End it.
        """
        self._killed = True
        transport: Any = self.transport
        transport.signalProcess("KILL")

    def processExited(self, reason: Failure) -> None:
        # what it started may keep its output open for as long as it likes
        if self._late.active():
            self._late.cancel()
        transport: Any = self.transport
        self._late = self._clock.callLater(LAST_WORDS, transport.loseConnection)

    def processEnded(self, reason: Failure) -> None:
        if self._late.active():
            self._late.cancel()
        if reason.check(ProcessDone):
            self.ended.callback(None)
            return
        said = self._output.decode("utf-8", "backslashreplace").strip()
        why = "was killed" if self._killed else str(reason.value).rstrip(".")
        self.ended.callback(f"{why}; it said {said!r}" if said else why)


@implementer(ITransferListener)
class OnReceived:
    """
    Runs a program for each receipt of an outbox.

    @param reactor: spawns processes, and times them.
    @param program: absolute path.
    @param directory: of the store, for the program.
    """

    _log = Logger()

    def __init__(self, reactor: Any, program: str, directory: str, outbox: ReceivedOutbox) -> None:
        self._reactor = reactor
        self._program = program
        self._directory = os.path.abspath(directory)
        self._outbox = outbox
        self._running: dict[_Run, Deferred[Any]] = {}
        self._stopped = False
        self._next: Any = None

    def look(self) -> None:
        """
        Run the program for what is new, as far as there is room.
        """
        self._forget()
        while not self._stopped and len(self._running) < AT_ONCE:
            taken = self._outbox.take()
            if taken is None:
                return
            position, receipt = taken
            known = {**attrs.asdict(receipt), "directory": self._directory}
            run = _Run(self._reactor, json.dumps(known).encode() + b"\n")
            self._running[run] = run.ended.addCallback(self._ended, run, position, receipt)
            try:
                self._reactor.spawnProcess(
                    run, self._program, [self._program], env=None, path=self._directory
                )
            except OSError as e:
                run.ended.callback(f"cannot be run: {e.strerror}")

    def _ended(
        self, why: str | None, run: _Run, position: tuple[int, int], receipt: Receipt
    ) -> None:
        del self._running[run]
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
        self._outbox.told(position)
        if not self._stopped and self._next is None:
            # not from here: a program that ends at once must not make this recurse
            self._next = self._reactor.callLater(0, self.look)

    def _forget(self) -> None:
        following, self._next = self._next, None
        if following is not None and following.active():
            following.cancel()

    async def stop(self) -> None:
        """
        Begin nothing new; what runs has L{TIME_LIMIT} seconds.
        """
        self._stopped = True
        self._forget()
        await DeferredList(list(self._running.values()))
        self._outbox.close()

    def published(self, receipt: Receipt) -> None:
        self.look()

    def offered(self, offer: Offer, peer: str) -> None:
        """
        Not our concern.
        """

    def refused(self, name: str, peer: str, why: Exception) -> None:
        """
        Not our concern.
        """

    def started(self, offer: Offer, peer: str) -> None:
        """
        Not our concern.
        """

    def progressed(self, offer: Offer, peer: str, done: int) -> None:
        """
        Not a file yet.
        """

    def failed(self, offer: Offer, peer: str, why: BaseException) -> None:
        """
        Not our concern.
        """
