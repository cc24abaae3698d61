"""
Receiving by the classic protocol.

The protocol marks neither the end of the name nor the end of the file:

  1. The sender waits for our answer after its name, so the name is what has
     arrived once the socket is quiet (L{SETTLE_SECONDS} seconds).
  2. The end of the connection is the end of the file.  A reset never
     publishes.  A sender that was killed looks like one that finished (its
     kernel closes the connection properly), so what is published is a prefix
     of what was sent, and its receipt says C{unverified}.

After our answer the transport stands still where its socket can be borrowed
(L{connpool.transfer.wire.borrowed}), until that sees the end: the transport, which it is
given back to, sees it once more and says so.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import NameRefused, NetworkFailed, TransferError, TransferTimeout
from connpool.interfaces import IDrainableProtocol
from connpool.transfer.names import RelativeName, displayName
from connpool.transfer.receive.reception import Incoming, Reception
from connpool.transfer.receive.sniffer import Refusal
from connpool.transfer.records import Offer
from connpool.transfer.wire.borrowed import BorrowedReader, lends
from connpool.transfer.wire.link import Deadline

__all__ = ["ClassicReceiver", "ClassicRefusal"]

#: Seconds of silence after which the name is complete.
SETTLE_SECONDS = 0.01

#: Bytes of the longest name: file systems take no longer component.
LONGEST_NAME_BYTES = 255

#: Bytes that a transport reads at once, of a name, and of a file where its socket cannot be
#: borrowed: the allocation of each read costs, not the copy.
NAME_READ_BYTES, READ_BYTES = 1 << 10, 1 << 20


@implementer(IHalfCloseableProtocol, IDrainableProtocol)
class ClassicReceiver(Protocol):
    """
    One connection, one file.

    @param clock: times the settling and the deadlines.
    @param reception: takes the file.
    @param suffix: appended to the name under which the file is published.
    """

    _log = Logger()

    def __init__(self, clock: Any, reception: Reception, suffix: str = "") -> None:
        self._clock = clock
        self._reception = reception
        self._suffix = suffix
        self._name = b""
        self._settle: Any = None
        self._incoming: Incoming | None = None
        self._offset = 0
        self._borrowed: BorrowedReader | None = None
        self._waiting = 0
        self._named: Deferred[bytes] = Deferred()
        self._ended: Deferred[None] = Deferred()
        self._deadline = Deadline(
            clock, reception.policy.idleTimeout, reception.policy.minimumRate, self._fail
        )

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.bufferSize = NAME_READ_BYTES
        self._peer = str(getattr(transport.getPeer(), "host", "") or "unix")
        self._deadline.start()
        Deferred.fromCoroutine(self._receive()).addErrback(self._broke)

    def _broke(self, failure: Failure) -> None:
        self._log.failure("receiving from {peer} failed", failure, peer=self._peer)
        # a store that is broken keeps nobody waiting
        self._forget()
        transport: Any = self.transport
        transport.abortConnection()

    async def _receive(self) -> None:
        """
        The protocol, from the name to the end.
        """
        transport: Any = self.transport
        peer = self._peer
        try:
            name = await self._named
            self._deadline.stop()
            # nothing is due from the sender until it has our answer
            transport.pauseProducing()
            offer = self._offer(name)
            self._incoming = incoming = await self._begin(offer)
            transport.write(b"ok")
            if not self._ended.called:
                if lends(self._clock, transport):
                    self._borrowed = BorrowedReader(self._clock, transport, self)
                transport.bufferSize = READ_BYTES
                self.steer()
            await self._ended
        except TransferError as e:
            self._forget()
            if self._incoming is not None:
                await self._incoming.abort(e)
                transport.abortConnection()
            else:
                transport.write(f"{e.code}: {e}\n".encode())
                transport.loseConnection()
            return
        except CancelledError:
            # the sender left before it had its answer
            self._forget()
            transport.loseConnection()
            return
        self._deadline.stop()
        try:
            await incoming.commit(None)
        except TransferError as e:
            self._log.info("{peer}: {why}", peer=peer, why=str(e))
            transport.abortConnection()
        else:
            transport.loseConnection()

    def _forget(self) -> None:
        """
        Ignore from now on how the connection ends.
        """
        self._deadline.stop()
        self._giveBack()
        self._ended.addErrback(lambda _: None)

    def _offer(self, raw: bytes) -> Offer:
        policy = self._reception.policy
        try:
            name = RelativeName.parse(raw, profile=policy.names, dotfiles=policy.dotfiles)
            if len(name.components) != 1:
                raise NameRefused("a name without directories is asked for")
            if self._suffix:
                name = RelativeName.parse(
                    name.path + self._suffix, profile=policy.names, dotfiles=policy.dotfiles
                )
        except NameRefused as e:
            self._reception.refuse(displayName(raw), self._peer, e)
            raise
        return Offer(
            name=name,
            transferId=secrets.token_hex(16),
            # classic has none; ours has the receipt noted before it is told
            key=secrets.token_bytes(32),
            ifExists=policy.ifExists,
            protocol="classic",
        )

    async def _begin(self, offer: Offer) -> Incoming:
        incoming = await self._reception.begin(offer, self._peer, self._fail)
        assert isinstance(incoming, Incoming), "a new key finishes nothing twice"
        return incoming

    def dataReceived(self, data: bytes) -> None:
        self._deadline.arrived(len(data))
        if self._incoming is not None:
            self._store(memoryview(data))
        elif not self._named.called:
            self._name += data
            if len(self._name) > LONGEST_NAME_BYTES:
                self._fail(
                    NameRefused(f"a name has 1 to {LONGEST_NAME_BYTES} bytes; wait for ok after it")
                )
                return
            if self._settle is not None:
                self._settle.cancel()
            self._settle = self._clock.callLater(SETTLE_SECONDS, self._quiet)

    def _quiet(self) -> None:
        # If we were late ourselves, more of the name, or the end of the
        # connection, may lie in the socket: one more turn of the reactor tells.
        self._settle = self._clock.callLater(0, self._nameSettled)

    def _nameSettled(self) -> None:
        self._settle = None
        self._named.callback(self._name)

    def _store(self, view: memoryview, done: Callable[[], None] = lambda: None) -> None:
        """
        @param done: called when C{view} is not needed any more.
        """
        incoming = self._incoming
        pause = None
        if incoming is not None and not (incoming.ended or self._ended.called):
            try:
                pause = incoming.write(self._offset, view)
            except TransferError as e:
                self._fail(e)
            else:
                self._offset += len(view)
        if pause is None:
            done()
            return

        def written(result: Any) -> None:
            done()
            self._waiting -= 1
            if isinstance(result, Failure):
                why: Any = result.value
                self._fail(why)
            else:
                self.steer()

        self._waiting += 1
        self.steer()
        pause.addBoth(written)

    # -- reading the borrowed socket

    #: the file's length is not known
    wanted = sys.maxsize

    def borrowed(self, view: memoryview, done: Callable[[], None]) -> None:
        self._deadline.arrived(len(view))
        self._store(view, done)

    def borrowedEnd(self) -> None:
        self._giveBack()
        transport: Any = self.transport
        transport.resumeProducing()

    def failed(self, why: BaseException | None) -> None:
        self._giveBack()
        if not self._ended.called:
            self._ended.errback(NetworkFailed("the sender's connection was reset"))

    def steer(self) -> None:
        """
        Read, or do not while the store has something to write.
        """
        if self._ended.called:
            return
        (self._deadline.stop if self._waiting else self._deadline.start)()
        if self._borrowed is not None:
            self._borrowed.steer(not self._waiting)
        else:
            transport: Any = self.transport
            (transport.pauseProducing if self._waiting else transport.resumeProducing)()

    def _giveBack(self) -> None:
        borrowed, self._borrowed = self._borrowed, None
        if borrowed is not None:
            borrowed.close()

    # -- ends

    def _fail(self, why: TransferError) -> None:
        """
        End the conversation with C{why}, wherever it stands.
        """
        if self._settle is not None:
            self._settle.cancel()
            self._settle = None
        if isinstance(why, TransferTimeout) and not self._name:
            # nobody spoke: nothing to answer
            self._named.cancel()
            return
        waited: Deferred[Any] = self._ended if self._named.called else self._named
        if not waited.called:
            waited.errback(why)

    def readConnectionLost(self) -> None:
        """
        The sender has nothing more to send.
        """
        if self._incoming is not None:
            if not self._ended.called:
                self._ended.callback(None)
        else:
            self._leave()

    def writeConnectionLost(self) -> None:
        """
        We never close one direction only.
        """

    def _leave(self) -> None:
        if self._settle is not None:
            self._settle.cancel()
            self._settle = None
        if not self._named.called:
            self._named.cancel()
        elif not self._ended.called:
            self._ended.errback(NetworkFailed("the sender left before the answer"))

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 - Twisted's signature
        self._giveBack()
        if self._incoming is None:
            self._leave()
        elif not self._ended.called:
            if reason.check(ConnectionDone):
                self._ended.callback(None)
            else:
                self._ended.errback(NetworkFailed("the sender's connection was reset"))

    def drain(self) -> None:
        if not self._named.called:
            self._leave()


class ClassicRefusal(Refusal):
    """
    The answer to a classic sender at a receiver that does not take classic from it.
    """

    answer = (
        b"forbidden: the classic protocol is not taken from this address; "
        b"see --classic-from of the receiver\n"
    )
