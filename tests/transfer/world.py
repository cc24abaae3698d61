"""
Both sides of C{cpt/1} in memory: no sockets, no threads, no waiting.

A L{Wire} passes the bytes of one connection on and can cut it at a byte, flip
a bit, or fall silent.
"""

from __future__ import annotations

from types import SimpleNamespace

from twisted.internet import defer, task
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import AuthenticationFailed
from connpool.interfaces import IAuthenticator
from connpool.logonce import GATHER_SECONDS
from connpool.transfer.identities import Identity
from connpool.transfer.receive.policy import Policy
from connpool.transfer.receive.reception import Reception
from connpool.transfer.receive.session import NativeReceiver
from connpool.transfer.send.client import Retry, Sending
from connpool.transfer.send.connections import Dialled, SessionFactory
from connpool.transfer.send.keys import SenderKeys
from connpool.transfer.send.request import SendRequest
from connpool.transfer.stores import MemoryStore
from tests.helpers.transports import PausableTransport

#: Small enough that a reference transfer of a few KiB has everything.
SMALL_BLOCKS = SendRequest(durability="none", blockSize=4096, extentBytes=8192, compress="never")


class MemoryTransport(PausableTransport):
    """
    One end of a wire.
    """

    bufferSize = 65536
    limit = 65536

    def __init__(self, wire, side):
        self.wire = wire
        self.side = side
        self.protocol = None
        self.outbox = []
        self.unsent = 0
        self.full = False
        self.disconnecting = False
        self.closed = False

    def write(self, data):
        assert isinstance(data, bytes)
        if not self.closed and not self.disconnecting and data:
            self.outbox.append(data)
            self.unsent += len(data)
            if self.producer is not None and self.unsent > self.limit:
                self.full = True
                self.producer.pauseProducing()

    def take(self, count):
        """
        The next bytes on their way.
        """
        data = b"".join(self.outbox)
        data, rest = data[:count], data[count:]
        self.outbox[:] = [rest] if rest else []
        self.unsent = len(rest)
        return data

    def drained(self):
        """
        The kernel took what there was.
        """
        if self.full and not self.unsent and not self.closed:
            self.full = False
            if self.producer is not None:
                self.producer.resumeProducing()

    def loseConnection(self):
        self.disconnecting = True

    def abortConnection(self):
        self.wire.reset(self)

    def getPeer(self):
        return IPv4Address("TCP", "192.0.2.1", 1)

    def lost(self, why):
        if not self.closed:
            self.closed = True
            self.protocol.connectionLost(Failure(why))


class Wire:
    """
    @ivar sent: bytes that went through, by side (0: from the sender).
    @ivar cut: (side, byte, how): after that many bytes of that side the
        connection ends: C{"fin"}, C{"rst"}, or is C{"silent"} from then on.
    @ivar flips: (side, byte): these bytes are changed.
    @ivar chunk: bytes that arrive at once.
    @ivar clock: the world's.
    """

    clock = None

    def __init__(self, cut=None, flips=(), chunk=1 << 20):
        self.ends = (MemoryTransport(self, 0), MemoryTransport(self, 1))
        self.sent = [0, 0]
        self.log = ([], [])
        self.cut = cut
        self.flips = set(flips)
        self.silent = False
        self.chunk = chunk

    def attach(self, client, server):
        for end, protocol in zip(self.ends, (client, server), strict=True):
            end.protocol = protocol
        server.makeConnection(self.ends[1])
        client.makeConnection(self.ends[0])

    @property
    def alive(self):
        return not all(end.closed for end in self.ends)

    def reset(self, end):
        other = self.ends[1 - end.side]
        end.outbox.clear()
        end.lost(ConnectionLost())
        if not self.silent:
            other.lost(ConnectionLost())

    def step(self):
        """
        Pass something on, after what is due in the turn of the reactor.

        @return: whether anything moved.
        """
        if self.clock is not None:
            self.clock.advance(0)
        moved = False
        for end in self.ends:
            other = self.ends[1 - end.side]
            if self.silent:
                # the kernel takes what fits into its buffer, and no more
                if end.outbox and end.unsent <= end.limit:
                    moved = True
                    end.take(end.unsent)
                if end.disconnecting and not end.closed:
                    end.lost(ConnectionDone())
                continue
            if end.outbox and not other.paused and not other.closed:
                moved = True
                self._pass(end, other, end.take(self.chunk))
                end.drained()
            elif end.disconnecting and not end.outbox and not end.closed:
                moved = True
                end.lost(ConnectionDone())
                other.lost(ConnectionDone())
        return moved

    def _pass(self, end, other, data):
        side, at = end.side, self.sent[end.side]
        for flip_side, byte in list(self.flips):
            if flip_side == side and at <= byte < at + len(data):
                self.flips.discard((flip_side, byte))
                data = bytearray(data)
                data[byte - at] ^= 1
                data = bytes(data)
        ends = self.cut is not None and self.cut[0] == side and at + len(data) >= self.cut[1]
        if ends:
            data = data[: self.cut[1] - at]
        self.sent[side] += len(data)
        self.log[side].append(data)
        if data:
            other.protocol.dataReceived(data)
        if ends:
            how, self.cut = self.cut[2], None
            if how == "silent":
                self.silent = True
            else:
                why = ConnectionDone if how == "fin" else ConnectionLost
                for e in self.ends:
                    e.outbox.clear()
                    e.lost(why())


class World:
    """
    A receiver in memory, and senders.

    @ivar wires: every connection, oldest first.
    @ivar plan: what the next connections shall suffer: keyword arguments of
        L{Wire}.
    """

    def __init__(self, state=None, policy=None, store=None, **receiver):
        self.clock = task.Clock()
        self.store = store or MemoryStore(capacity=None, now=self.clock.seconds)
        self.state = state
        self.policy = policy or Policy(minimumRate=0)
        self.receiver_ = receiver
        self.wires = []
        self.plan = []
        self.refuse = False
        self.wire = Wire
        self.restart()

    def restart(self):
        """
        A new receiver over the same store.
        """
        self.reception = Reception(self.store, self.clock, self.policy)
        self.receiver = NativeReceiver(self.clock, self.reception, **self.receiver_)

    def connect(self, factory):
        if self.refuse:
            return defer.fail(ConnectError())
        wire = self.wire(**(self.plan.pop(0) if self.plan else {}))
        wire.clock = self.clock
        self.wires.append(wire)
        client = factory.buildProtocol(None)
        wire.attach(client, self.receiver.build(wire.ends[1]))
        return defer.succeed(client)

    def sending(self, *paths, request=SMALL_BLOCKS, destination="world", retry=None, **more):
        factory = SessionFactory(
            self.clock,
            more.pop("digests", ("blake3", "sha256")),
            more.pop("credentials", None),
            more.pop("idleTimeout", 60.0),
            more.get("pace"),
        )
        return Sending(
            self.clock,
            Dialled(SimpleNamespace(connect=self.connect), factory),
            [str(path) for path in paths],
            destination,
            request=request,
            keys=SenderKeys(self.state),
            retry=retry or Retry(attempts=3),
            inThread=more.pop("inThread", defer.maybeDeferred),
            **more,
        )

    def start(self, sending):
        """
        @return: the report, in a list once it is there.
        """
        results = []
        defer.Deferred.fromCoroutine(sending.send()).addBoth(results.append)
        return results

    def pump(self, rounds=100_000):
        """
        Let bytes flow until nothing moves any more.
        """
        for _ in range(rounds):
            moved = [wire.step() for wire in self.wires if wire.alive]
            if not any(moved):
                pending = [
                    c for c in self.clock.getDelayedCalls() if c.getTime() <= self.clock.seconds()
                ]
                if not pending:
                    return
                self.clock.advance(0)
        raise AssertionError("it never comes to rest")

    def finish(self, results, seconds=900.0):
        """
        Let time pass until there is a report.
        """
        end = self.clock.seconds() + seconds
        self.pump()
        while not results:
            assert self.clock.seconds() < end, "no end in sight"
            self.clock.advance(0.5)
            self.pump()
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def send(self, *paths, **more):
        return self.finish(self.start(self.sending(*paths, **more)))

    def settle(self, seconds=200.0):
        """
        Let everything end that ends by itself.
        """
        for _ in range(int(seconds)):
            self.clock.advance(1.0)
            self.pump()

    def close(self):
        for wire in self.wires:
            for end in wire.ends:
                end.lost(ConnectionLost())
        self.pump()
        self.clock.advance(GATHER_SECONDS)
        assert not self.clock.getDelayedCalls()
        assert not self.reception.active
        assert not self.receiver.tickets


@implementer(IAuthenticator)
class Passwords:
    """
    Takes whoever knows one password.
    """

    takesPasswords = True

    def __init__(self, secret):
        self._secret = secret

    def certified(self, transport):
        return None

    def password(self, transport, user, secret):
        if secret == self._secret:
            return defer.succeed(Identity(user))
        return defer.fail(AuthenticationFailed("user or password is wrong"))
