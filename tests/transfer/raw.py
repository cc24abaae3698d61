"""
A sender that says exactly what it is told to, over a L{Wire}.
"""

import os

from twisted.internet.protocol import Protocol

from connpool.transfer.digests import BLOCK_SIZE, DIGESTS, rootOf
from connpool.transfer.wire.frames import PREAMBLE, Frame, FrameReader, Type
from connpool.transfer.wire.handshake import transcriptOf
from connpool.transfer.wire.messages import (
    Auth,
    Commit,
    Data,
    Digests,
    Entry,
    Hello,
    OfferMessage,
    Put,
    Puts,
    decode,
    encode,
)

SHA = DIGESTS["sha256"]


class Raw(Protocol):
    """
    @ivar frames: what came, as (frame, message).
    @ivar capabilities: what it says it can.
    """

    def __init__(self, world):
        self.world = world
        self.reader = FrameReader()
        self.frames = []
        self.capabilities = ("join",)
        self.seen = b""
        self.lost = False

    def dataReceived(self, data):
        if len(self.seen) < 8:
            count = 8 - len(self.seen)
            self.seen += data[:count]
            data = data[count:]
        for event in self.reader.feed(data):
            assert isinstance(event, Frame)
            self.frames.append((event, decode(event)))

    def connectionLost(self, reason=None):
        self.lost = True

    def say(self, kind, stream, message, data=b""):
        self.transport.write(encode(kind, stream, message, len(data)) + data)
        self.world.pump()
        return self

    def last(self, kind=None):
        """
        The last message, of a kind if given.
        """
        for frame, message in reversed(self.frames):
            if kind is None or frame.type is kind:
                return message
        raise AssertionError(f"no {kind} among {[frame.type for frame, _ in self.frames]}")

    def kinds(self):
        return [frame.type for frame, _ in self.frames]

    def greet(self, method="none", user="", secret=b"", digests=("sha256",)):
        self.transport.write(PREAMBLE)
        ours = Hello((1,), "raw", self.capabilities, digests, bytes(32))
        hello = encode(Type.HELLO, 0, ours)
        self.transport.write(hello)
        self.world.pump()
        frame, _ = self.frames[-1]
        theirs = encode(Type.HELLO, 0, decode(frame))
        self.say(Type.AUTH, 0, Auth(transcriptOf(hello, theirs), method, user, secret))
        return self

    def offer(self, stream, name=b"f", size=8192, key=None, resumeKey=None, **more):
        more.setdefault("blockSize", 4096)
        return self.say(
            Type.OFFER,
            stream,
            OfferMessage(
                bytes(16),
                name,
                key or os.urandom(32),
                size,
                resumeKey=resumeKey,
                durability="none",
                **more,
            ),
        )

    def data(self, stream, offset, data):
        return self.say(Type.DATA, stream, Data(offset), data)

    def digests(self, stream, first, *blocks):
        return self.say(Type.DIGESTS, stream, Digests(first), b"".join(map(SHA.of, blocks)))

    def commit(self, stream, content, blockSize=4096, size=None):
        blocks = [SHA.of(content[at : at + blockSize]) for at in range(0, len(content), blockSize)]
        size = len(content) if size is None else size
        return self.say(
            Type.COMMIT, stream, Commit(size, rootOf(SHA, len(content), blockSize, blocks))
        )

    def puts(self, stream, files, durability="none", ifExists=""):
        """
        @param files: names with contents, or L{entry}s with contents.
        """
        pairs = [(entry(n, c) if isinstance(n, bytes) else n, c) for n, c in files]
        message = Puts(ifExists, durability, tuple(each for each, _ in pairs))
        return self.say(Type.PUTS, stream, message, b"".join(content for _, content in pairs))

    def put(self, stream, name, content, key=None):
        blocks = [SHA.of(content)] if content else []
        root = rootOf(SHA, len(content), BLOCK_SIZE, blocks)
        return self.say(
            Type.PUT,
            stream,
            Put(bytes(16), name, key or os.urandom(32), root, durability="none"),
            content,
        )


def entry(name, content, key=None, **more):
    """
    One file of C{PUTS}.
    """
    root = more.pop(
        "root", rootOf(SHA, len(content), BLOCK_SIZE, [SHA.of(content)] * bool(content))
    )
    size = more.pop("size", len(content))
    return Entry(os.urandom(16), name, key or os.urandom(32), root, size, **more)


def connect(world, *capabilities):
    """
    A raw sender with a connection of its own.
    """
    from tests.transfer.world import Wire

    raw = Raw(world)
    raw.capabilities += capabilities
    wire = Wire()
    world.wires.append(wire)
    wire.attach(raw, world.receiver.build(wire.ends[1]))
    return raw
