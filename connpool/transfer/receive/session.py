"""
The receiving side of C{cpt/1}: its connections.

Theory of operation
===================
A L{ReceiverSession} is one connection: greeting, authentication, then files.
What spans connections is in the L{NativeReceiver} that made it: the tickets by which
further connections join a session.  What becomes of a file is in its stream
(L{connpool.transfer.receive.stream}), or of a small one in
L{connpool.transfer.receive.smallfiles}.

Nothing the peer says decides what we allocate: streams, small files in flight
and bytes outstanding have limits of ours (below); when one is reached we refuse
or stop reading.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from connpool.errors import (
    Busy,
    Cancelled,
    Expired,
    NetworkFailed,
    ProtocolError,
    TransferError,
    TransferTimeout,
)
from connpool.interfaces import IAuthenticator
from connpool.transfer.digests import digestNamed
from connpool.transfer.identities import Identity
from connpool.transfer.names import displayName, displayText
from connpool.transfer.receive import smallfiles
from connpool.transfer.receive.dryrun import DryRun
from connpool.transfer.receive.greeting import STREAMS, Greeting
from connpool.transfer.receive.offers import Sender
from connpool.transfer.receive.quotas import Account
from connpool.transfer.receive.reception import Reception
from connpool.transfer.receive.smallfiles import SmallFiles
from connpool.transfer.receive.updates import Updates
from connpool.transfer.wire.frames import HEADER_BYTES, MAX_STREAM, PREAMBLE, Frame, Type
from connpool.transfer.wire.handshake import BEGINNINGS, CAPABLE, FROM_SENDER, ON_JOINED
from connpool.transfer.wire.link import Deadline, Link
from connpool.transfer.wire.messages import (
    ROOT,
    Data,
    Error,
    Goaway,
    Join,
    Joined,
    OfferMessage,
    Ping,
    Ready,
    dataBytesIn,
    decode,
    encode,
    extensionOf,
    timeOf,
)
from connpool.transfer.wire.update import Ask

if TYPE_CHECKING:
    from connpool.transfer.receive.reading import Requests
    from connpool.transfer.receive.stream import Stream
    from connpool.transfer.receive.unpacking import Unpacking

__all__ = ["NativeReceiver", "ReceiverSession"]

#: Seconds between PROGRESS frames.
PROGRESS_SECONDS = 1.0
#: Idle timeouts that input of unknown size may be silent for.
UNKNOWN_SIZE_TIMEOUTS = 10


class NativeReceiver:
    """
    Makes sessions for connections that begin with the preamble.

    @param reactor: times, threads and descriptors.
    @param digests: algorithms in order of preference.
    @param authenticator: L{None} if everybody may send, as C{anonymous}.
    @ivar tickets: the sessions that further connections may join.
    """

    signature = PREAMBLE

    def __init__(
        self,
        reactor: Any,
        reception: Reception,
        digests: Sequence[str] = ("blake3", "sha256"),
        authenticator: IAuthenticator | None = None,
    ) -> None:
        self.clock = reactor
        self.reception = reception
        self.digests = tuple(digests)
        for name in self.digests:
            digestNamed(name)
        self.authenticator = authenticator
        self.tickets: dict[bytes, ReceiverSession] = {}

    def build(self, transport: Any) -> Link:
        """
        Make the protocol of one connection.
        """
        policy = self.reception.policy
        address = transport.getPeer()
        host = getattr(address, "host", None) or getattr(address, "name", None) or "unix"
        session = ReceiverSession(self, displayName(host))
        return Link(self.clock, session, policy.idleTimeout, policy.minimumRate)


class ReceiverSession:
    """
    One connection of a sender.

    @ivar peer: the sender, for logs.
    @ivar principal: the owner of these files.
    """

    _log = Logger()

    def __init__(self, receiver: NativeReceiver, peer: str) -> None:
        self._receiver = receiver
        self._clock = receiver.clock
        self._reception = receiver.reception
        self.peer = peer
        self.principal = ""
        self._sender: Sender
        self._smallFiles: SmallFiles | None = None
        self._ticket = b""
        self._joined: ReceiverSession | None = None
        self._joiners: list[ReceiverSession] = []
        self._streams: dict[int, Stream] = {}
        self._lastStream = 0
        self._place: tuple[Stream | Unpacking | None, int] = (None, 0)
        self._more: set[Type] = set()
        self._dryRun: DryRun | None = None
        self._requests: Requests | None = None
        self._updates: Updates | None = None
        self._accounts: list[Account] = []
        self._deadline, self._patience = self._deadlines(None)
        self._ticking: Any = None
        self._draining = self._closing = self._over = False
        self._why: TransferError | None = None

    # -- the connection

    def linkMade(self, link: Link) -> None:
        """
        Begin the greeting; the preamble has not been read.
        """
        self._link = link
        transport: Any = link.transport
        transport.registerProducer(link, True)
        receiver = self._receiver
        self._greeting = Greeting(
            *(self._letIn, self.broken, link, self.peer, self._clock, self._reception),
            *(receiver.digests, receiver.authenticator),
        )
        self._state: Callable[[Frame, Any], None] = self._greeting.frameReceived

    def greeted(self) -> None:
        """
        Answer the preamble.
        """
        self._link.send(PREAMBLE)

    def foreign(self, data: bytes) -> None:
        """
        End a connection that begins with something else.
        """
        self._link.abort(ProtocolError("this is not cpt/1"))

    def send(self, *parts: bytes) -> None:
        """
        Write to the sender.
        """
        self._link.send(*parts)

    def frameReceived(self, frame: Frame) -> None:
        """
        Take a frame.
        """
        self._state(frame, decode(frame))

    def partReceived(self, view: memoryview) -> Deferred[None] | None:
        """
        Take a piece of the last C{DATA} frame, or of a data part that nobody wants.
        """
        stream, offset = self._place
        self._place = stream, offset + len(view)
        if stream is None:
            return None
        (self._joined or self)._arrived(len(view))
        return stream.write(self, offset, view)

    def turn(self) -> None:
        """
        Store and answer small files: all that had come was read.
        """
        self._flush()

    def _flush(self) -> None:
        small = self._smallFiles
        if small is not None:
            if small.files:
                small.store()
            if small.acks.collected:
                small.acks.flush()

    def late(self, why: TransferError) -> None:
        """
        End the session because a deadline of the connection passed.
        """
        if isinstance(why, TransferTimeout) and not self._link.reader.inside and self._waited:
            return  # it waits for us
        self.broken(why)

    def _deadlines(self, identity: Identity | None) -> tuple[Deadline, Deadline]:
        """
        @return: for files, and for input that its sender has to wait for itself.
        """
        clock, (idle, rate) = self._clock, self._reception.quotas.deadline(identity)
        return Deadline(clock, idle, rate, self._tooSlow), Deadline(
            clock, idle * UNKNOWN_SIZE_TIMEOUTS, 0, self._tooSlow
        )

    def _arrived(self, count: int) -> None:
        self._deadline.arrived(count)
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
        self._flush()
        detail = " ".join(str(why).split())[:1024]
        self.send(encode(Type.ERROR, 0, Error(why.code, detail)))
        self._why = why
        self._link.close()

    def halfClosed(self) -> None:
        """
        Finish: the sender has said all it will.
        """
        if self._joined is not None:
            self._link.close()  # nothing more comes by this one
            return
        self._closing = True
        self._flush()
        for stream in list(self._streams.values()):
            if stream.receiving:
                stream.fail(Cancelled("the sender closed the connection"))
        self._maybeClose()

    def linkLost(self, why: BaseException) -> None:
        """
        End all streams: the connection is gone.
        """
        if self._over:
            return
        self._over = True
        self._greeting.stop()
        for account in self._accounts:
            account.disconnect()
        self._deadline.stop()
        self._patience.stop()
        if self._smallFiles is not None:
            self._smallFiles.stop()
        if self._requests is not None:
            self._requests.stop()
        if self._ticking is not None and self._ticking.active():
            self._ticking.cancel()
        self._receiver.tickets.pop(self._ticket, None)
        if self._joined is not None:
            self._joined.laneLost(self)
        for joiner in list(self._joiners):
            joiner._joined = None
            joiner._link.close()
        failure = self._why or (
            why if isinstance(why, TransferError) else NetworkFailed("the sender went away")
        )
        for stream in list(self._streams.values()):
            stream.fail(failure)

    def laneLost(self, joiner: ReceiverSession) -> None:
        """
        Forget a joined connection that is gone.
        """
        self._joiners.remove(joiner)
        for stream in list(self._streams.values()):
            stream.laneLost(joiner)

    def drain(self) -> None:
        """
        Begin nothing new.
        """
        if not self._draining and not self._over:
            self._draining = True
            if self._ticket:
                self.send(encode(Type.GOAWAY, 0, Goaway("the receiver is stopping")))
            for stream in list(self._streams.values()):
                if stream.queued:
                    stream.fail(Busy("the receiver is stopping"))
            self._maybeClose()

    def _letIn(self, sender: Sender, transcript: bytes) -> None:
        """
        Begin to take files: the greeting is over.
        """
        quotas = self._reception.quotas
        for account in quotas.accounts(sender.identity):
            account.connect()
            self._accounts.append(account)
        self._sender = sender
        self.principal = sender.principal
        self._smallFiles = SmallFiles(
            *(self.send, self._pendingChanged, self._link),
            *(self._clock, self._reception, sender),
        )
        # neither has begun
        self._deadline, self._patience = self._deadlines(sender.identity)
        self._link.keepDeadline(*quotas.deadline(sender.identity))
        self._ticket = secrets.token_bytes(32)
        self._receiver.tickets[self._ticket] = self
        ready = Ready(transcript, secrets.token_bytes(16), self._ticket, self.principal)
        self.send(encode(Type.READY, 0, ready))
        self._state = self._open
        self._more = {kind for kind, what in CAPABLE.items() if what in sender.capabilities}
        self._link.reader.expected = FROM_SENDER | self._more
        self._link.reader.wants = self._wants
        self._link.admit()
        if self._draining:
            self.send(encode(Type.GOAWAY, 0, Goaway("the receiver is stopping")))

    # -- files

    def _wants(self, kind: Type, number: int, length: int) -> bool:
        """
        Tell whether a data part that is announced is to be kept; see L{FrameReader.wants}.
        """
        if kind is Type.PUT:
            return length <= smallfiles.SMALL_FILE_BYTES and not self._over
        if kind is Type.PUTS:
            return not self._over
        stream = (self._joined or self)._streams.get(number)
        return stream is not None and stream.takes(kind, length)

    def _open(self, frame: Frame, message: Any) -> None:
        kind = frame.type
        if frame.length != len(frame.data) + len(frame.files):
            self._place = None, 0  # unless it is DATA of a file that is open, nobody gets it
        if kind is Type.DATA:
            data: Data = message
            if not frame.length:
                raise ProtocolError("DATA carries no bytes")
            self._place = self._find(frame), data.offset
        elif kind is Type.PACKED:
            from connpool.transfer.receive.unpacking import unpacking

            self._place = unpacking(self._find(frame), self._link, message, frame.length), 0
        elif kind in BEGINNINGS:
            self._begin(frame, message)
        elif kind is Type.HOLE:
            (self._joined or self)._arrived(HEADER_BYTES + len(frame.control))
            hole = self._find(frame)
            if hole is not None:
                self._link.waitFor(hole.skip(self, message.offset, message.length))
        elif kind in {Type.DIGESTS, Type.REVOKE, Type.COMMIT, Type.CANCEL}:
            if self._joined is not None and kind is not Type.DIGESTS:
                raise ProtocolError(f"{kind.name} on a joined connection")
            stream = self._find(frame)
            if stream is not None:
                stream.frameReceived(frame, message)
        elif kind is Type.PING:
            ping: Ping = message
            self.send(encode(Type.PONG, 0, Ping(ping.token)))
        elif kind is Type.JOIN:
            self._join(message)
        elif kind in {Type.LIST, Type.READ}:
            self._ask(frame, message)
        elif kind is Type.ERROR:
            error: Error = message
            self._why = NetworkFailed(
                f"the sender gave up: {displayName(error.code)}: {displayText(error.detail)}"
            )
            self._link.close()

    def _find(self, frame: Frame) -> Stream | None:
        """
        @return: L{None} if it has ended, and the frame was on its way.
        """
        owner = self._joined or self
        stream = owner._streams.get(frame.stream)
        if stream is None and frame.stream > owner._lastStream:
            raise ProtocolError(f"stream {frame.stream} was never offered")
        return stream

    def _join(self, message: Join) -> None:
        owner = self._receiver.tickets.get(message.ticket)
        if owner is None or owner is self or owner.principal != self.principal:
            raise Expired("there is no such session")
        if self._lastStream or self._joined is not None:
            raise ProtocolError("JOIN is for a connection that has done nothing else")
        del self._receiver.tickets[self._ticket]
        self._joined = owner
        owner._joiners.append(self)
        self._link.reader.expected = ON_JOINED | (self._more & {Type.HOLE, Type.PACKED})
        self.send(encode(Type.JOINED, 0, Joined()))

    def _begin(self, frame: Frame, message: Any) -> None:
        number, small = frame.stream, self._smallFiles
        assert small is not None
        if self._joined is not None:
            raise ProtocolError(f"{frame.type.name} on a joined connection")
        if number <= self._lastStream:
            raise ProtocolError(f"stream {number} comes after {self._lastStream}")
        entries = message.entries if frame.type is Type.PUTS else (message,)
        self._lastStream = number + len(entries) - 1
        if self._lastStream > MAX_STREAM:
            raise ProtocolError(f"PUTS has files beyond stream {MAX_STREAM}")
        if frame.length:
            self._arrived(frame.length)
        if small.files and frame.type is not Type.PUT:
            small.store()  # what came before is decided before
        if frame.type is Type.ASK:
            self._compare(number, message)
        elif self._draining:
            for stream, entry in enumerate(entries, number):
                small.refuse(stream, entry.name, Busy("the receiver is stopping"))
        elif frame.type is Type.PUT:
            small.put(frame, message)
        elif frame.type is Type.PUTS:
            small.puts(frame, message)
        elif frame.type is Type.DIRECTORY:
            small.directory(frame, message)
        else:
            try:
                self._offer(number, message, small)
            except TransferError as e:
                small.refuse(number, message.name, e)

    def _ask(self, frame: Frame, message: Any) -> None:
        """
        Take a request to read.
        """
        if self._joined is not None or frame.stream <= self._lastStream:
            raise ProtocolError(f"{frame.type.name} on stream {frame.stream}")
        self._lastStream = frame.stream
        requests = self._requests
        if requests is None:
            # here: a session that only sends does not pass there
            from connpool.transfer.receive.reading import Requests, readerOf

            requests = self._requests = Requests(
                readerOf(self._reception, self._sender.identity, self.peer),
                self._sender.digest,
                self.send,
                lambda: self._link.full,
                self._maybeClose,
            )
            self._link.resumed = requests.writable
        requests.ask(frame.stream, message, self._draining)

    def _compare(self, number: int, message: Ask) -> None:
        if self._updates is None:
            self._updates = Updates(self.send, self._reception, self._sender)
        self._link.waitFor(self._updates.ask(number, message, self._draining))
        self._keepTelling()

    def _offer(self, number: int, message: OfferMessage, small: SmallFiles) -> None:
        if len(self._streams) >= STREAMS:
            raise Busy(f"{STREAMS} files are open in this session; finish one first")
        sender, reception = self._sender, self._reception
        offer = reception.offer(
            message.name,
            sender.identity,
            message.ifExists,
            transferId=message.transferId.hex(),
            size=message.size,
            key=message.key,
            resumeKey=message.resumeKey,
            modified=timeOf(message),
            executable=message.executable,
            digest=sender.digest.name,
            blockSize=message.blockSize,
            durability=message.durability,
            dataBytes=dataBytesIn(message) if "holes" in sender.capabilities else None,
        )
        if message.dry:
            if self._dryRun is None:
                self._dryRun = DryRun(reception, small, self.send)
            self._dryRun.answer(number, offer, extensionOf(message, ROOT))
            return
        from connpool.transfer.receive.stream import Stream  # not before a large file comes

        stream = self._streams[number] = Stream(self, number, offer, sender, reception, self._clock)
        self.receivingChanged()
        d = Deferred.fromCoroutine(stream.begin())
        d.addErrback(lambda f: self._log.failure("a transfer failed to begin", failure=f))

    # -- told by the files

    def stored(self) -> None:
        """
        Note a sign of life: a large file is stored.
        """
        self._arrived(0)

    def ended(self, number: int) -> None:
        """
        Forget a stream that has had its answer.
        """
        self._streams.pop(number, None)
        self.receivingChanged()
        self._maybeClose()

    def _pendingChanged(self) -> None:
        """
        Go on: more or fewer bytes of small files wait for the store.
        """
        self._keepTelling()
        self._maybeClose()

    def receivingChanged(self) -> None:
        """
        Watch the deadline while it is the sender's turn; tell how it goes while
        anything is open.
        """
        if self._over:
            return
        receiving = [stream for stream in self._streams.values() if stream.receiving]
        comparing = any(stream.comparing for stream in receiving)
        file = not comparing and any(stream.offer.size is not None for stream in receiving)
        unknown = not comparing and not file and bool(receiving)
        (self._deadline.start if file else self._deadline.stop)()
        (self._patience.start if unknown else self._patience.stop)()
        self._keepTelling()

    @property
    def _pending(self) -> int:
        small = 0 if self._smallFiles is None else self._smallFiles.pending
        return small + (self._updates is not None and self._updates.busy)

    def _keepTelling(self) -> None:
        """
        Let a sender that waits hear of us.
        """
        if self._ticking is None and not self._over and (self._streams or self._pending):
            self._ticking = self._clock.callLater(PROGRESS_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        if not self._link.full:
            for stream in list(self._streams.values()):
                stream.progress()
            if self._updates is not None:
                self._updates.progress()
            if self._smallFiles is not None:
                self._smallFiles.progress()
        self._keepTelling()

    @property
    def _waited(self) -> bool:
        """
        Tell whether it is our turn.
        """
        return self._pending > 0 or any(not each.receiving for each in self._streams.values())

    @property
    def _busy(self) -> bool:
        reading = self._requests is not None and self._requests.busy
        return reading or self._pending > 0 or bool(self._streams) or self._joined is not None

    def _links(self) -> list[Link]:
        return [self._link, *(joiner._link for joiner in self._joiners)]

    def _maybeClose(self) -> None:
        if (self._closing or self._draining) and not self._over and not self._busy:
            self._flush()
            self._link.close()
