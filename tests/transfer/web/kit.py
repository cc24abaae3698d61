"""
The web door in memory: a client that writes bytes and reads answers.
"""

from __future__ import annotations

import json

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from connpool.logonce import GATHER_SECONDS
from connpool.transfer.receive.policy import Policy
from connpool.transfer.receive.reception import Reception
from connpool.transfer.stores import MemoryStore
from connpool.transfer.web.door import WebDoor
from connpool.transfer.web.settings import WebCounts, WebSettings
from tests.helpers.transports import PausableTransport

HOST = b"127.0.0.1:8640"


class Transport(PausableTransport):
    """
    The receiver's end of a connection.  Nothing is delivered while it is paused.
    """

    bufferSize = 65536
    #: bytes that the kernel takes of what is written; more waits for the client to read
    room = 1 << 20

    def __init__(self, peer):
        self.peer = peer
        self.written = b""
        self.arriving = b""
        self.closed = self.halfClosed = self.lost = self.full = False
        self.finArrives = False
        self.protocol = None

    def write(self, data):
        assert not self.halfClosed
        self.written += data
        if len(self.written) > self.room and not self.full and self.producer is not None:
            self.full = True
            self.producer.pauseProducing()

    def loseWriteConnection(self):
        self.halfClosed = True

    def loseConnection(self):
        self.end(ConnectionDone())

    def abortConnection(self):
        self.end(ConnectionLost())

    def end(self, why):
        if not self.lost:
            self.lost = self.closed = True
            self.protocol.connectionLost(Failure(why))

    def getPeer(self):
        return self.peer


class Client:
    """
    One connection to a door.
    """

    def __init__(self, world, peer):
        self.world = world
        self.transport = Transport(peer)
        self.channel = world.door.build(self.transport)
        self.transport.protocol = self.channel
        self.channel.makeConnection(self.transport)
        self.taken = 0
        #: places of the answers that have no body, whatever they say
        self.bare = set()

    def pump(self):
        """
        Let bytes arrive until nothing moves any more.
        """
        transport, clock = self.transport, self.world.clock
        for _ in range(100_000):
            due = [c for c in clock.getDelayedCalls() if c.getTime() <= clock.seconds()]
            if due:
                clock.advance(0)
            elif transport.arriving and not transport.paused and not transport.lost:
                count = transport.bufferSize
                data, transport.arriving = transport.arriving[:count], transport.arriving[count:]
                self.channel.dataReceived(data)
            elif transport.finArrives and not transport.paused and not transport.lost:
                transport.finArrives = False
                self.channel.readConnectionLost()
            else:
                return self
        raise AssertionError("it never comes to rest")

    def send(self, data):
        self.transport.arriving += data
        return self.pump()

    def trickle(self, data, seconds=0.0):
        """
        Send byte by byte.
        """
        for byte in data:
            self.send(bytes([byte]))
            self.wait(seconds)
        return self

    def wait(self, seconds):
        self.world.clock.advance(seconds)
        return self.pump()

    def fin(self):
        self.transport.finArrives = True
        return self.pump()

    def reset(self):
        self.transport.end(ConnectionLost())
        return self

    @property
    def ended(self):
        return self.transport.lost or self.transport.halfClosed

    def answers(self):
        """
        @return: all answers so far, the interim ones too.
        """
        return parseAnswers(self.transport.written, self.bare)

    def answer(self):
        """
        @return: the one final answer since the last time.
        """
        final = [each for each in self.answers() if each.status >= 200][self.taken :]
        assert len(final) == 1, final
        self.taken += 1
        return final[0]

    def ask(self, method, target, body=None, fields=(), host=HOST):
        """
        Make a request, and return its answer.
        """
        if method == b"HEAD":
            self.bare.add(self.taken)
        return self.send(request(method, target, body, fields, host)).answer()

    def put(self, target, body=b"", *fields):
        return self.ask(b"PUT", target, body, fields)


@attrs.frozen
class Told:
    status: int
    fields: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


def request(method, target, body=None, fields=(), host=HOST):
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: " + host, *fields]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + (body or b"")


def parseAnswers(raw, bare=()):
    found = []
    finals = 0
    while raw:
        top, _, raw = raw.partition(b"\r\n\r\n")
        line, *lines = top.decode("ascii").split("\r\n")
        version, status, _ = line.split(" ", 2)
        assert version == "HTTP/1.1"
        fields = {}
        for each in lines:
            name, _, value = each.partition(": ")
            assert name.lower() not in fields, f"{name} twice"
            fields[name.lower()] = value
        length = 0 if finals in bare else int(fields.get("content-length", 0))
        finals += int(status) >= 200
        assert len(raw) >= length
        body, raw = raw[:length], raw[length:]
        found.append(Told(int(status), fields, body))
    return found


class World:
    """
    A receiver in memory.
    """

    def __init__(self, policy=None, store=None, authenticator=None, listeners=(), **settings):
        self.clock = Clock()
        self.store = store or MemoryStore(now=self.clock.seconds)
        self.reception = Reception(
            self.store, self.clock, policy or Policy(minimumRate=0), listeners
        )
        self.counts = WebCounts()
        self.door = WebDoor(
            *(self.clock, self.reception, authenticator),
            *(WebSettings(**settings), self.counts),
        )
        self.clients = []

    def connect(self, host="127.0.0.1", peer=None):
        client = Client(self, peer or IPv4Address("TCP", host, 40000))
        self.clients.append(client)
        return client

    @property
    def files(self):
        return self.store.files

    def close(self):
        for client in self.clients:
            client.reset()
        closing = self.door.close()
        assert closing.called
        self.clock.advance(GATHER_SECONDS)
        assert not self.clock.getDelayedCalls()
        assert not self.reception.active
        assert self.counts.connections == 0
