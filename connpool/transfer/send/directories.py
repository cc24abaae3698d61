"""
The directories of a run, which come after its files.

Theory of operation
===================
Whatever is made in a directory changes its time.  So directories are sent when every file
had its answer, and of those only such at once as have nothing left below them: the next
ones follow when these were answered, whatever order the receiver takes them in.
"""

from __future__ import annotations

from typing import Any

from connpool.errors import ProtocolError, TransferError
from connpool.transfer.send.joblist import Job
from connpool.transfer.send.streams import Exchange
from connpool.transfer.send.walking import Found
from connpool.transfer.wire.frames import Frame, Type
from connpool.transfer.wire.messages import Ack, Directory, ReceiptMessage, encode

__all__ = ["Directories"]


class _DirectoryStream:
    """
    The answer to one C{DIRECTORY}.
    """

    def __init__(self, directories: Directories, found: Found) -> None:
        self._directories = directories
        self.found = found

    def takes(self, kind: Type, length: int) -> bool:
        return False

    def frameReceived(self, frame: Frame, message: Any) -> None:
        raise ProtocolError(f"{frame.type.name} for a DIRECTORY")

    def stored(self, receipt: ReceiptMessage | Ack) -> None:
        if isinstance(receipt, ReceiptMessage):
            raise ProtocolError("RECEIPT for a DIRECTORY")
        self._directories.answered(self, None)

    def rejected(self, why: TransferError, retryable: bool) -> None:
        self._directories.answered(self, why)


class Directories:
    """
    @param exchange: the session that they go by.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._open: dict[_DirectoryStream, None] = {}

    @property
    def waiting(self) -> bool:
        """
        Tell whether some have not been answered.
        """
        return bool(self._open)

    def sendSome(self) -> bool:
        """
        Send those that are due now, if all files were answered.

        @return: whether there were any.
        """
        exchange = self._exchange
        session, jobs = exchange.session, exchange.jobs
        if self._open or session.stopping or not jobs.filesDone:
            return False
        due = jobs.deepest()
        if exchange.request.dry or "directories" not in session.capabilities:
            while due:
                exchange.reporter.directoriesLeftOut(len(due))
                due = jobs.deepest()
            return False
        most = session.limits.inflightFiles
        for found in due[most:]:
            jobs.keep(found)
        for found in due[:most]:
            stream = _DirectoryStream(self, found)
            self._open[stream] = None
            message = Directory(found.name, found.modified, exchange.durability.level)  # type: ignore[arg-type]  # a request has it as text
            session.writer.send(encode(Type.DIRECTORY, session.open(stream), message))
        return bool(due)

    def giveBack(self) -> None:
        """
        Leave those that were not answered to the next session.
        """
        for stream in self._open:
            self._exchange.jobs.keep(stream.found)
        self._open = {}

    def answered(self, stream: _DirectoryStream, why: TransferError | None) -> None:
        """
        Count it as made, or say C{why} it is not.
        """
        del self._open[stream]
        found, exchange = stream.found, self._exchange
        exchange.advanced = True
        if why is None:
            exchange.reporter.directoryMade()
        elif why.retryable and exchange.session.stopping:
            exchange.jobs.keep(found)
        else:
            exchange.reporter.failed(Job(found.path, found.name), why)
        exchange.wake()
