"""
The answers to senders that ask what is there already.

Theory of operation
===================
A sender is told only of what the receipts of its own principal say that it stored, as long as
that is what lies there; of everything else it learns nothing, not even whether it exists.
The store decides that (L{connpool.interfaces.IUpdateStore}), one C{ASK} after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import NameRefused, TransferError
from connpool.transfer.names import RelativeName
from connpool.transfer.receive.offers import Sender
from connpool.transfer.receive.reception import Reception
from connpool.transfer.records import SAME, UNTOLD, AskedFile
from connpool.transfer.wire.frames import Type
from connpool.transfer.wire.messages import encode, pingOf
from connpool.transfer.wire.update import Ask, Have

__all__ = ["Updates"]


class Updates:
    """
    The questions of one session.

    @param send: writes to the sender.
    @ivar busy: whether one is not answered yet.
    """

    _log = Logger()

    def __init__(
        self, send: Callable[[bytes, bytes], None], reception: Reception, sender: Sender
    ) -> None:
        self._send = send
        self._reception = reception
        self._sender = sender
        self.busy = False

    def ask(self, number: int, message: Ask, draining: bool) -> Deferred[None]:
        """
        Answer a question.

        @param draining: whether nothing is begun any more: then nothing is told.
        @return: fires when it is answered; never fails.
        """
        if draining:
            self._answer(bytes([UNTOLD]) * len(message.files), number)
            return succeed(None)
        self.busy = True
        store: Any = self._reception.store
        files = [
            AskedFile(self._name(each.name), each.size, each.modified, each.root)
            for each in message.files
        ]
        self._reception.asked += len(files)
        answers: Deferred[bytes] = maybeDeferred(
            store.compare, self._sender.principal, files, self._sender.digest.name
        )
        return answers.addErrback(self._failed, len(files)).addCallback(self._answer, number)

    def progress(self) -> None:
        """
        Say that a sender that waits has not been forgotten.
        """
        if self.busy:
            self._send(encode(Type.PING, 0, pingOf("disk")), b"")

    def _name(self, raw: bytes) -> RelativeName | None:
        try:
            return self._reception.names(self._sender.identity).read(raw)
        except NameRefused:
            return None  # it is refused when it comes

    def _failed(self, failure: Failure, count: int) -> bytes:
        if failure.check(TransferError):
            self._log.info("cannot compare files: {why}", why=failure.value)
        else:
            self._log.failure("comparing files failed", failure=failure)
        return bytes([UNTOLD]) * count

    def _answer(self, answers: bytes, number: int) -> None:
        self.busy = False
        self._reception.unchanged += answers.count(SAME)
        self._send(encode(Type.HAVE, number, Have(), len(answers)), answers)
