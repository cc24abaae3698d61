"""
The receiving side of C{cpt/1}: one connection.

Theory of operation
===================
A L{ReceiverSession} is one connection: greeting, authentication, then files.
What has to outlive or span connections is in the L{NativeReceiver} that made
it: tickets, by which further connections join a session, and claims, by which a
newer delivery of a file finds the older one.

Nothing the peer says decides what we allocate: streams, small files in flight
and bytes outstanding have limits of ours (below); when one is reached we refuse
or stop reading.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import (
    Busy,
    Cancelled,
    DigestMismatch,
    Expired,
    Forbidden,
    NameRefused,
    NetworkFailed,
    ProtocolError,
    QuotaExceeded,
    StoreError,
    TooLarge,
    TransferError,
    TransferTimeout,
)
from connpool.transfer.deadlines import Pace
from connpool.transfer.digests import BLOCK_SIZE, Digest, rootOf
from connpool.transfer.identities import ANONYMOUS, Identity
from connpool.transfer.names import displayName
from connpool.transfer.receive import greeting
from connpool.transfer.receive.dryrun import DryRun
from connpool.transfer.receive.earlier import earlierOf
from connpool.transfer.receive.greeting import (
    FROM_SENDER,
    ON_JOINED,
    PENDING_BYTES,
    STREAMS,
    Greeting,
)
from connpool.transfer.receive.offers import nameOf, offerOf
from connpool.transfer.receive.quotas import Account
from connpool.transfer.receive.smallfiles import Acks
from connpool.transfer.receive.stream import (
    Delivery,
    asTransferError,
    receiptFrame,
    rejectFrame,
)
from connpool.transfer.records import DirectoryMade, Offer, Receipt
from connpool.transfer.wire.frames import PREAMBLE, Frame, Type
from connpool.transfer.wire.link import Link
from connpool.transfer.wire.messages import (
    ROOT,
    Accept,
    Data,
    Directory,
    Error,
    Extension,
    Goaway,
    Join,
    Joined,
    Offering,
    Ping,
    Put,
    Ready,
    decode,
    encode,
    pingOf,
)

if TYPE_CHECKING:
    from connpool.transfer.receive.registry import NativeReceiver

__all__ = ["ReceiverSession"]

#: Seconds between PROGRESS frames.
PROGRESS_INTERVAL = 1.0
#: Idle timeouts that input of unknown size may be silent for.
PATIENCE = 10
#: Bytes that a file asked about in a dry run takes until its answer.
DRY_BYTES = 4096


class ReceiverSession:
    """
    One connection of a sender.

    @ivar peer: the sender, for logs.
    @ivar principal: whose files these are.
    """

    _log = Logger()

    def __init__(self, registry: NativeReceiver, peer: str) -> None:
        self.registry = registry
        self.peer = peer
        self.principal = ""
        self._identity: Identity | None = None
        self.digest: Digest
        self._capabilities: frozenset[str] = frozenset()
        self._ticket = b""
        self._joined: ReceiverSession | None = None
        self._joiners: list[ReceiverSession] = []
        self._deliveries: dict[int, Delivery] = {}
        self._last = 0
        self._run: tuple[Delivery | None, int] = (None, 0)
        self._pending = 0
        self._tooMany = False
        self._dryRun: DryRun | None = None
        self._acks = Acks(registry.clock, self.send)
        self._accounts: list[Account] = []
        self._pace, self._patience = self._paced(None)
        self._ticking: Any = None
        self._draining = False
        self._closing = False
        self._over = False
        self._why: TransferError | None = None

    # -- the connection

    def linkMade(self, link: Link) -> None:
        """
        Connected; the preamble has not been read.
        """
        self._link = link
        transport: Any = link.transport
        transport.registerProducer(link, True)
        self._greeting = Greeting(self, link)
        self._state: Callable[[Frame, Any], None] = self._greeting.frameReceived

    def greeted(self) -> None:
        """
        The preamble came.
        """
        self._link.send(PREAMBLE)

    def foreign(self, data: bytes) -> None:
        """
        Something else came.
        """
        self._link.abort(ProtocolError("this is not cpt/1"))

    def send(self, *parts: bytes) -> None:
        """
        Write to the sender.
        """
        self._link.send(*parts)

    def frameReceived(self, frame: Frame) -> None:
        """
        A frame came.
        """
        self._state(frame, decode(frame))

    def runReceived(self, view: memoryview) -> Deferred[None] | None:
        """
        A part of the run of the last DATA frame.
        """
        delivery, offset = self._run
        self._run = delivery, offset + len(view)
        if delivery is None:
            return None
        (self._joined or self)._arrived(len(view))
        return delivery.write(self, offset, view)

    def turn(self) -> None:
        """
        All that had come was read.
        """
        self._acks.flush()

    def late(self, why: TransferError) -> None:
        """
        A deadline of the connection passed.
        """
        if isinstance(why, TransferTimeout) and not self._link.reader.inside and self._waited:
            return  # it waits for us
        self.broken(why)

    def _paced(self, identity: Identity | None) -> tuple[Pace, Pace]:
        """
        @return: for files, and for input that its sender has to wait for itself.
        """
        clock, (idle, rate) = self.registry.clock, self.registry.reception.pace(identity)
        return Pace(clock, idle, rate, self._tooSlow), Pace(
            clock, idle * PATIENCE, 0, self._tooSlow
        )

    def _arrived(self, count: int) -> None:
        self._pace.arrived(count)
        self._patience.arrived(count)

    def _tooSlow(self, why: TransferError) -> None:
        if any(link.holds for link in self._links()):
            self.receivingChanged()  # we held it back
        else:
            self.broken(why)

    def broken(self, why: TransferError) -> None:
        """
        End the session with an ERROR.
        """
        if self._over:
            return
        if not self._link.greeted:
            self._link.abort(why)
            return
        self._acks.flush()
        detail = " ".join(str(why).split())[:1024]
        self.send(encode(Type.ERROR, 0, Error(why.code, detail)))
        self._why = why
        self._link.close()

    def halfClosed(self) -> None:
        """
        The sender has said all it will.
        """
        if self._joined is not None:
            self._link.close()  # nothing more comes by this one
            return
        self._closing = True
        for delivery in list(self._deliveries.values()):
            if delivery.receiving:
                delivery.fail(Cancelled("the sender closed the connection"))
        self._maybeClose()

    def linkLost(self, why: BaseException) -> None:
        """
        The connection is gone.
        """
        if self._over:
            return
        self._over = True
        self._greeting.stop()
        for account in self._accounts:
            account.disconnect()
        self._pace.stop()
        self._patience.stop()
        self._acks.stop()
        if self._ticking is not None and self._ticking.active():
            self._ticking.cancel()
        self.registry.tickets.pop(self._ticket, None)
        if self._joined is not None:
            self._joined.laneLost(self)
        for joiner in list(self._joiners):
            joiner._joined = None
            joiner._link.close()
        failure = self._why or (
            why if isinstance(why, TransferError) else NetworkFailed("the sender went away")
        )
        for delivery in list(self._deliveries.values()):
            delivery.fail(failure)

    def laneLost(self, joiner: ReceiverSession) -> None:
        """
        A joined connection is gone.
        """
        self._joiners.remove(joiner)
        for delivery in self._deliveries.values():
            delivery.laneLost(joiner)

    def drain(self) -> None:
        """
        Begin nothing new.
        """
        if not self._draining and not self._over:
            self._draining = True
            if self._ticket:
                self.send(encode(Type.GOAWAY, 0, Goaway("the receiver is stopping")))
            for delivery in list(self._deliveries.values()):
                if delivery.queued:
                    delivery.fail(Busy("the receiver is stopping"))
            self._maybeClose()

    def letIn(
        self,
        identity: Identity | None,
        digest: Digest,
        capabilities: frozenset[str],
        transcript: bytes,
    ) -> None:
        """
        The greeting is over.

        @param capabilities: those that both sides have.
        @param transcript: what READY confirms.
        @raise Busy: if the sender has too many sessions already.
        """
        reception = self.registry.reception
        for account in reception.accounts(identity):
            account.connect()
            self._accounts.append(account)
        self._identity = identity
        self._capabilities = capabilities
        self.digest = digest
        self.principal = principal = ANONYMOUS if identity is None else identity.principal
        # nothing is paced yet
        self._pace, self._patience = self._paced(identity)
        self._link.keepPace(*reception.pace(identity))
        self._ticket = secrets.token_bytes(32)
        self.registry.tickets[self._ticket] = self
        ready = Ready(transcript, secrets.token_bytes(16), self._ticket, principal)
        self.send(encode(Type.READY, 0, ready))
        self._state = self._open
        directories = {Type.DIRECTORY} if "directories" in capabilities else frozenset()
        self._link.reader.expected = FROM_SENDER | directories
        self._link.reader.wants = self._wants
        self._link.admit()
        if self._draining:
            self.send(encode(Type.GOAWAY, 0, Goaway("the receiver is stopping")))

    # -- files

    def _wants(self, kind: Type, number: int, length: int) -> bool:
        """
        Tell whether a run that is announced is to be kept; see L{FrameReader.wants}.
        """
        if kind is Type.PUT:
            return length <= greeting.SMALL_FILE and not self._over
        delivery = (self._joined or self)._deliveries.get(number)
        return delivery is not None and delivery.takes(kind, length)

    def _open(self, frame: Frame, message: Any) -> None:
        kind = frame.type
        if frame.length != len(frame.data):
            self._run = None, 0  # unless it is DATA of a file that is open, nobody gets it
        if kind is Type.DATA:
            data: Data = message
            if not frame.length:
                raise ProtocolError("DATA carries no bytes")
            self._run = self._find(frame), data.offset
        elif kind is Type.PUT:
            self._put(frame, message)
        elif kind is Type.OFFER:
            self._offer(frame, message)
        elif kind is Type.DIRECTORY:
            self._directory(frame, message)
        elif kind in {Type.DIGESTS, Type.REVOKE, Type.COMMIT, Type.CANCEL}:
            if self._joined is not None and kind is not Type.DIGESTS:
                raise ProtocolError(f"{kind.name} on a joined connection")
            delivery = self._find(frame)
            if delivery is not None:
                delivery.frameReceived(frame, message)
        elif kind is Type.PING:
            ping: Ping = message
            self.send(encode(Type.PONG, 0, Ping(ping.token)))
        elif kind is Type.JOIN:
            self._join(message)
        elif kind is Type.ERROR:
            error: Error = message
            self._why = NetworkFailed(
                f"the sender gave up: {displayName(error.code)}: {displayName(error.detail)}"
            )
            self._link.close()

    def _find(self, frame: Frame) -> Delivery | None:
        """
        @return: L{None} if it has ended, and the frame was on its way.
        """
        owner = self._joined or self
        delivery = owner._deliveries.get(frame.stream)
        if delivery is None and frame.stream > owner._last:
            raise ProtocolError(f"stream {frame.stream} was never offered")
        return delivery

    def _join(self, message: Join) -> None:
        owner = self.registry.tickets.get(message.ticket)
        if owner is None or owner is self or owner.principal != self.principal:
            raise Expired("there is no such session")
        if self._last or self._joined is not None:
            raise ProtocolError("JOIN is for a connection that has done nothing else")
        del self.registry.tickets[self._ticket]
        self._joined = owner
        owner._joiners.append(self)
        self._link.reader.expected = ON_JOINED
        self.send(encode(Type.JOINED, 0, Joined()))

    def _stream(self, frame: Frame) -> None:
        if self._joined is not None:
            raise ProtocolError(f"{frame.type.name} on a joined connection")
        if frame.stream <= self._last:
            raise ProtocolError(f"stream {frame.stream} comes after {self._last}")
        self._last = frame.stream

    def _offer(self, frame: Frame, message: Offering) -> None:
        self._stream(frame)
        try:
            if len(self._deliveries) >= STREAMS:
                raise Busy(f"{STREAMS} files are open in this session; finish one first")
            offer = self._offered(message, message.size, message.blockSize, message.resumeKey)
            if message.dry:
                self._dry(frame.stream, offer, message)
                return
        except TransferError as e:
            self._refuse(frame.stream, message.name, e)
            return
        claim = None
        if offer.resumeKey is not None:
            claim = (self.principal, hashlib.sha256(offer.resumeKey).digest())
        delivery = self._deliveries[frame.stream] = Delivery(self, frame.stream, offer, claim)
        self.receivingChanged()
        d = Deferred.fromCoroutine(delivery.begin())
        d.addErrback(lambda f: self._log.failure("a transfer failed to begin", failure=f))

    def _offered(
        self, message: Offering | Put, size: int | None, blockSize: int, resumeKey: bytes | None
    ) -> Offer:
        if self._draining:
            raise Busy("the receiver is stopping")
        policy = self.registry.reception.policy
        identity, digest = self._identity, self.digest.name
        return offerOf(message, policy, identity, digest, size, blockSize, resumeKey)

    def _dry(self, number: int, offer: Offer, message: Offering) -> None:
        root = next((each.value for each in message.extensions if each.name == ROOT), None)
        if self._dryRun is None:
            self._dryRun = DryRun(self.registry.reception, greeting.SMALL_FILE)
        self._pendingChanged(DRY_BYTES)

        def judged(result: bool | Failure) -> None:
            if isinstance(result, Failure):
                self.send(rejectFrame(number, asTransferError(result)))
            else:
                depends = (Extension(ROOT, False, b""),) if result else ()
                self.send(encode(Type.ACCEPT, number, Accept("dry", 0, extensions=depends)))
            self._pendingChanged(-DRY_BYTES)

        Deferred.fromCoroutine(self._dryRun.judge(offer, root)).addBoth(judged)

    def _put(self, frame: Frame, message: Put) -> None:
        self._stream(frame)
        number, data = frame.stream, frame.data
        if frame.length > greeting.SMALL_FILE:
            raise ProtocolError(f"PUT carries {frame.length} bytes; at most {greeting.SMALL_FILE}")
        self._arrived(len(data))
        try:
            offer = self._offered(message, len(data), BLOCK_SIZE, None)
            blocks = [self.digest.of(data)] if data else []
            if rootOf(self.digest, len(data), BLOCK_SIZE, blocks) != message.root:
                raise DigestMismatch("the bytes that came are not those that were sent")
            stored = self.registry.reception.put(offer, data, message.root, self.peer)
        except TransferError as e:
            self._refuse(number, message.name, e)
            return
        except Exception as e:
            self._log.failure("storing a file failed")
            self.send(rejectFrame(number, StoreError(f"the store failed: {type(e).__name__}")))
            return
        if isinstance(stored, Receipt):
            self._stored(number, offer, stored)
            return
        size = len(data) + 512
        self._pendingChanged(size)
        room = self.registry.reception.room(self._identity)
        if room is not None:
            self._link.waitFor(room)

        def done(result: Any) -> None:
            if isinstance(result, Failure):
                self.send(rejectFrame(number, asTransferError(result)))
            else:
                self._stored(number, offer, result)
            self._pendingChanged(-size)

        stored.addBoth(done)

    def _pendingChanged(self, change: int) -> None:
        self._pending += change
        self._keepTelling()
        tooMany = self._pending > PENDING_BYTES
        if tooMany != self._tooMany and not self._over:
            self._tooMany = tooMany
            (self._link.hold if tooMany else self._link.release)()
        self._maybeClose()

    def _refuse(self, number: int, name: bytes, why: TransferError) -> None:
        if isinstance(why, NameRefused | Forbidden | Busy | TooLarge | QuotaExceeded):
            self.registry.reception.refuse(displayName(name), self.peer, why)
        self.send(rejectFrame(number, why))

    def _stored(self, number: int, offer: Offer, receipt: Receipt) -> None:
        if self._over:
            return
        if receipt.transferId != offer.transferId and "earlier" in self._capabilities:
            self.earlier(offer, receipt).addCallback(
                lambda there: self.send(receiptFrame(number, receipt, self._identity, there))
            )
            return
        if receipt.status != "stored" or receipt.name != offer.name.path:
            self.send(receiptFrame(number, receipt, self._identity))
            return
        self._acks.add(number, receipt)

    def earlier(self, offer: Offer, receipt: Receipt) -> Deferred[bytes | None]:
        """
        @return: see L{earlierOf}; fires with L{None} for a sender that is not told.
        """
        if "earlier" not in self._capabilities:
            return succeed(None)
        return earlierOf(self.registry.reception.store, offer, receipt)

    def _directory(self, frame: Frame, message: Directory) -> None:
        self._stream(frame)
        number, reception = frame.stream, self.registry.reception
        try:
            if self._draining:
                raise Busy("the receiver is stopping")
            name = nameOf(message.name, reception.policy, self._identity)
            making = reception.makeDirectory(
                name, self._identity, message.modified, message.durability, self.peer
            )
        except TransferError as e:
            self._refuse(number, message.name, e)
            return
        size = len(message.name) + 512
        self._pendingChanged(size)
        room = reception.room(self._identity)
        if room is not None:
            self._link.waitFor(room)

        def done(result: DirectoryMade | Failure) -> None:
            if isinstance(result, Failure):
                self._refuse(number, message.name, asTransferError(result))
            elif not self._over:
                self._acks.add(number, result)
            self._pendingChanged(-size)

        making.addBoth(done)

    # -- the deliveries' side

    def stored(self) -> None:
        """
        A large file is stored: a sign of life.
        """
        self._arrived(0)

    def ended(self, number: int) -> None:
        """
        A stream has had its answer.
        """
        self._deliveries.pop(number, None)
        self.receivingChanged()
        self._maybeClose()

    def receivingChanged(self) -> None:
        """
        Watch the pace while it is the sender's turn; tell how it goes while
        anything is open.
        """
        if self._over:
            return
        receiving = [delivery for delivery in self._deliveries.values() if delivery.receiving]
        comparing = any(delivery.comparing for delivery in receiving)
        file = not comparing and any(delivery.offer.size is not None for delivery in receiving)
        unknown = not comparing and not file and bool(receiving)
        (self._pace.start if file else self._pace.stop)()
        (self._patience.start if unknown else self._patience.stop)()
        self._keepTelling()

    def _keepTelling(self) -> None:
        """
        A sender that waits hears of us.
        """
        if self._ticking is None and not self._over and (self._deliveries or self._pending):
            self._ticking = self.registry.clock.callLater(PROGRESS_INTERVAL, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        if not self._link.full:
            for delivery in self._deliveries.values():
                delivery.progress()
            if self._pending:
                slow = self.registry.reception.slowedBy(self._identity)
                self.send(encode(Type.PING, 0, pingOf(slow)))
        self._keepTelling()

    @property
    def _waited(self) -> bool:
        """
        Tell whether it is our turn.
        """
        return self._pending > 0 or any(not d.receiving for d in self._deliveries.values())

    @property
    def _busy(self) -> bool:
        return self._pending > 0 or bool(self._deliveries) or self._joined is not None

    def _links(self) -> list[Link]:
        return [self._link, *(joiner._link for joiner in self._joiners)]

    def _maybeClose(self) -> None:
        if (self._closing or self._draining) and not self._over and not self._busy:
            self._acks.flush()
            self._link.close()
