"""
Files that the receiver has already: it is asked before they are sent.

Theory of operation
===================
Files are asked about in batches, as soon as they are found; several batches are on their way
together.  What is the same is done with; all else goes back to the job list, to be read and
sent as if nobody had asked.  A receiver that cannot tell, or does not, costs a question and
nothing else.
"""

from __future__ import annotations

from typing import Any

from connpool.errors import ProtocolError, TransferError
from connpool.transfer.records import SAME, UNTOLD
from connpool.transfer.send.joblist import Job
from connpool.transfer.send.streams import Exchange
from connpool.transfer.wire.frames import MAX_CONTROL_BYTES, Frame, Type
from connpool.transfer.wire.messages import Ack, ReceiptMessage, encode
from connpool.transfer.wire.update import ASKED_FILES, Ask, AskedFile

__all__ = ["Updating"]

#: Batches on their way, and files that wait to be asked about, at most.
_MOST_BATCHES, _MOST_FILES = 8, 8192
#: Bytes that a file takes of its batch, at most, beside its name.
_FILE_BYTES = 96


class _AskStream:
    """
    The answer to one C{ASK}.
    """

    def __init__(self, updating: Updating, jobs: list[Job]) -> None:
        self._updating = updating
        self.jobs = jobs

    def takes(self, kind: Type, length: int) -> bool:
        return kind is Type.HAVE and length == len(self.jobs)

    def frameReceived(self, frame: Frame, message: Any) -> None:
        if frame.type is not Type.HAVE or len(frame.data) != len(self.jobs):
            raise ProtocolError(f"{frame.type.name} does not answer an ASK of {len(self.jobs)}")
        self._updating.answered(self, frame.data)

    def stored(self, receipt: ReceiptMessage | Ack) -> None:
        raise ProtocolError("an ASK is not answered by a receipt")

    def rejected(self, why: TransferError, retryable: bool) -> None:
        self._updating.answered(self, bytes([UNTOLD]) * len(self.jobs))


class Updating:
    """
    @param exchange: the session that it asks over.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._open: dict[_AskStream, int] = {}
        if exchange.jobs.update and "update" not in exchange.session.capabilities:
            exchange.jobs.update = ""
            exchange.reporter.cannotTell()

    @property
    def waiting(self) -> bool:
        """
        Tell whether some have not been answered.
        """
        return bool(self._open)

    @property
    def full(self) -> bool:
        """
        Tell whether enough wait to be asked about.
        """
        return len(self._exchange.jobs.asking) >= _MOST_FILES

    def sendSome(self) -> bool:
        """
        Ask about those that were found.

        @return: whether there were any.
        """
        exchange = self._exchange
        session, asking = exchange.session, exchange.jobs.asking
        did = False
        while asking and len(self._open) < _MOST_BATCHES and not session.stopping:
            jobs: list[Job] = []
            room = MAX_CONTROL_BYTES - _FILE_BYTES
            while asking and len(jobs) < ASKED_FILES and room >= len(asking[0].name) + _FILE_BYTES:
                job = asking.popleft()
                room -= len(job.name) + _FILE_BYTES
                jobs.append(job)
            stream = _AskStream(self, jobs)
            number = self._open[stream] = session.open(stream)
            session.writer.send(encode(Type.ASK, number, Ask(tuple(map(_asked, jobs)))))
            did = True
        return did

    def giveBack(self) -> None:
        """
        Leave those that were not answered to the next session.
        """
        for stream in self._open:
            for job in stream.jobs:
                self._exchange.jobs.again(job)
        self._open = {}

    def answered(self, stream: _AskStream, answers: bytes) -> None:
        """
        Be done with what is the same, and send the rest.
        """
        exchange = self._exchange
        exchange.session.forget(self._open.pop(stream))
        exchange.advanced = True
        for job, answer in zip(stream.jobs, answers, strict=True):
            if answer == SAME:
                exchange.reporter.unchanged(job)
            else:
                job.asked = True
                exchange.jobs.again(job)
        exchange.reporter.untold(answers.count(UNTOLD))
        exchange.wake()


def _asked(job: Job) -> AskedFile:
    assert job.status is not None
    # a time that does not fit is told by the content, or not at all
    modified: int | None = job.status.st_mtime_ns
    if job.checksum or not -(2**63) <= job.status.st_mtime_ns < 2**63:
        modified = None
    return AskedFile(job.name, job.status.st_size, modified, job.checksum)
