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
from connpool.transfer.send.walking import Found
from connpool.transfer.wire.frames import Frame, Type
from connpool.transfer.wire.messages import Ack, Directory, Receipting, encode

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

    def stored(self, receipt: Receipting | Ack) -> None:
        if isinstance(receipt, Receipting):
            raise ProtocolError("RECEIPT for a DIRECTORY")
        self._directories.answered(self, None)

    def rejected(self, why: TransferError, retryable: bool) -> None:
        self._directories.answered(self, why)


class Directories:
    """
    @param transmission: whose session they go by.
    @param report: told with C{directoryMade()}, C{directoriesLeftOut(count)} and
        C{failed(job, error)}.
    """

    def __init__(self, transmission: Any, report: Any) -> None:
        self._transmission = transmission
        self._report = report
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
        transmission = self._transmission
        session, asked, work = transmission.session, transmission.asked, transmission.work
        if self._open or session.stopping or not work.filesDone:
            return False
        due = work.deepest()
        if asked.dry or "directories" not in session.capabilities:
            while due:
                self._report.directoriesLeftOut(len(due))
                due = work.deepest()
            return False
        most = session.limits.inflightFiles
        for found in due[most:]:
            work.keep(found)
        for found in due[:most]:
            stream = _DirectoryStream(self, found)
            self._open[stream] = None
            message = Directory(found.name, found.modified, transmission.level.asked)
            session.writer.send(encode(Type.DIRECTORY, session.open(stream), message))
        return bool(due)

    def giveBack(self) -> None:
        """
        The session is over: those that were not answered go with the next one.
        """
        for stream in self._open:
            self._transmission.work.keep(stream.found)
        self._open = {}

    def answered(self, stream: _DirectoryStream, why: TransferError | None) -> None:
        """
        It is there, or C{why} not.
        """
        del self._open[stream]
        found, transmission = stream.found, self._transmission
        transmission.advanced = True
        if why is None:
            self._report.directoryMade()
        elif why.retryable and transmission.session.stopping:
            transmission.work.keep(found)
        else:
            self._report.failed(Job(found.path, found.name), why)
        transmission.wake()
