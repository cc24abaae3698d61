"""
C{--before-publish PROGRAM}: ask a program before a file gets its name.

The program gets what is known of the file as JSON on descriptor 3 and the content, which it
cannot change by it, on descriptor 0: no path, nothing on its command line and no shell.  It
ends with 0 to let the file pass, and with 1 to refuse it for good; the first line that it prints
is the reason that the sender is told.  Whatever else becomes of it, a signal, another code, a
program that is not there or takes too long, holds the file: the sender tries again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore, maybeDeferred
from twisted.internet.error import ProcessDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import Held, HookRefused
from connpool.interfaces import ITransferJudge
from connpool.services.programs import NOT_BEGUN, OUTPUT_BYTES, BoundedRun, canRun
from connpool.transfer.names import displayText
from connpool.transfer.receive.listener import TransferListener
from connpool.transfer.records import Offer
from connpool.waiting import Waiters

__all__ = ["JUDGES_AT_ONCE", "BeforePublish"]

#: Programs that run at once.
JUDGES_AT_ONCE = 4
#: The descriptors of the program.
_CONTENT, _OUTPUT, _ERRORS, _KNOWN = 0, 1, 2, 3


class _Judgement(BoundedRun):
    """
    One run of the program.

    @ivar ended: fires with the reason of a refusal, or L{None}; fails with L{Held}.
    """

    def __init__(self, clock: Any, known: bytes, seconds: float) -> None:
        super().__init__(clock, seconds)
        self._known = known
        self._said = {_OUTPUT: b"", _ERRORS: b""}

    def connectionMade(self) -> None:
        super().connectionMade()
        transport: Any = self.transport
        transport.writeToChild(_KNOWN, self._known)
        transport.closeChildFD(_KNOWN)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        # the beginning is what counts, and a gigabyte costs nothing
        self._said[childFD] = (self._said[childFD] + data)[:OUTPUT_BYTES]

    def over(self, reason: Failure) -> None:
        lines = self._said[_OUTPUT].decode("utf-8", "backslashreplace").strip().splitlines()
        notBegun = any(said.startswith(NOT_BEGUN) for said in self._said.values())
        if reason.check(ProcessDone):
            self.ended.callback(None)
        elif getattr(reason.value, "exitCode", None) == 1 and not notBegun:
            self.ended.callback(displayText(lines[0]) if lines else "")
        else:
            said = self._said[_ERRORS].decode("utf-8", "backslashreplace").strip()
            why = self.killed or str(reason.value).rstrip(".")
            self.ended.errback(Held(f"{why}; it said {said!r}" if said else why))


@implementer(ITransferJudge)
class BeforePublish(TransferListener):
    """
    Runs a program for each file that would be published.

    @param reactor: spawns processes, and times them.
    @param program: absolute path.
    @param seconds: that it may take.
    """

    _log = Logger()

    def __init__(self, reactor: Any, program: str, seconds: float) -> None:
        self._reactor = reactor
        self._program = program
        self._seconds = seconds
        self._room = DeferredSemaphore(JUDGES_AT_ONCE)
        self._running: set[_Judgement] = set()
        self._stopped = False
        self._idle = Waiters()

    def beforePublish(
        self, offer: Offer, peer: str, content: Callable[[], int | Deferred[int]]
    ) -> Deferred[None]:
        return self._room.run(lambda: Deferred.fromCoroutine(self._judge(offer, peer, content)))

    async def _judge(self, offer: Offer, peer: str, content: Callable[[], Any]) -> None:
        try:
            why = await self._run(offer, peer, content)
        except Held as e:
            self._log.warn(
                "{program} for {name}: {why}; the file is held, id {id}",
                program=self._program,
                name=str(offer.name),
                why=str(e),
                id=offer.transferId,
            )
            raise Held("a program could not judge the file now; try again later") from None
        if why is not None:
            # without the name: the directory of a sender is the operator's business
            raise HookRefused(f"a program refuses the file: {why or 'it does not say why'}")

    async def _run(self, offer: Offer, peer: str, content: Callable[[], Any]) -> str | None:
        if self._stopped:
            raise Held("the receiver is stopping")
        if not canRun(self._program):
            raise Held("it is gone or not executable; chmod +x it")
        run = _Judgement(self._reactor, _known(offer, peer), self._seconds)
        fd = await maybeDeferred(content)
        try:
            if self._stopped:
                raise Held("the receiver is stopping")
            descriptors: dict[int, Any] = {_CONTENT: fd, _OUTPUT: "r", _ERRORS: "r", _KNOWN: "w"}
            self._running.add(run)
            self._reactor.spawnProcess(
                run, self._program, [self._program], env=None, childFDs=descriptors
            )
        except OSError as e:
            self._running.discard(run)
            self._idle.wake()
            raise Held(f"it cannot be run: {e.strerror}") from None
        finally:
            os.close(fd)
        try:
            return await run.ended
        finally:
            self._running.discard(run)
            self._idle.wake()

    async def stop(self) -> None:
        """
        Judge nothing more: what is being judged is held.
        """
        self._stopped = True
        for run in list(self._running):
            run.kill("the receiver is stopping")
        while self._running:
            await self._idle.wait()


def _known(offer: Offer, peer: str) -> bytes:
    """
    @return: what the program is told, one line of JSON.
    """
    known = {
        "transferId": offer.transferId,
        "name": offer.name.path,
        "size": offer.size,
        "principal": offer.principal,
        "peer": peer,
        "protocol": offer.protocol,
        "modified": offer.modified,
        "executable": offer.executable,
        "sha256": offer.sha256,
    }
    return json.dumps(known).encode() + b"\n"
