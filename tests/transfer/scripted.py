"""
A receiver that says exactly what it is told to.
"""

import os

from twisted.internet.protocol import Protocol

from connpool.transfer.wire.frames import PREAMBLE, Frame, FrameReader, Type
from connpool.transfer.wire.frames import frame as pack
from connpool.transfer.wire.handshake import transcriptOf
from connpool.transfer.wire.messages import Accept, Hello, Ready, ReceiverLimits, decode, encode


class Scripted(Protocol):
    """
    @param answer: called with each frame after the greeting, as (receiver, frame, message).
    @param idle: what its limits say.
    @ivar frames: what came, as (frame, message); of a run nothing is kept.
    @ivar received: bytes that came.
    """

    def __init__(self, answer, idle=60):
        self.answer = answer
        self.limits = ReceiverLimits(None, 2048, 64 << 20, 16_384, 256, idle)
        self.reader = FrameReader()
        self.frames = []
        self.received = 0
        self.seen = b""

    def dataReceived(self, data):
        self.received += len(data)
        if len(self.seen) < 8:
            count = 8 - len(self.seen)
            self.seen += data[:count]
            data = data[count:]
        for event in self.reader.feed(data):
            if isinstance(event, Frame):
                self.frames.append((event, decode(event)))
                self.greet(*self.frames[-1])

    def greet(self, frame, message):
        if frame.type is Type.HELLO:
            self.theirs = pack(frame.type, 0, frame.control)
            self.ours = encode(
                Type.HELLO,
                0,
                Hello(
                    (1,),
                    "scripted",
                    ("join",),
                    ("blake3", "sha256"),
                    bytes(32),
                    self.limits,
                    ("none",),
                ),
            )
            self.transport.write(PREAMBLE + self.ours)
        elif frame.type is Type.AUTH:
            transcript = transcriptOf(self.theirs, self.ours)
            self.say(Type.READY, 0, Ready(transcript, bytes(16), os.urandom(32), "anonymous"))
            self.answer(self, frame, message)
        else:
            self.answer(self, frame, message)

    def say(self, kind, stream, message, data=b""):
        self.transport.write(encode(kind, stream, message, len(data)) + data)

    def accept(self, stream):
        self.say(Type.ACCEPT, stream, Accept("new", 0))

    def kinds(self):
        return [frame.type for frame, _ in self.frames]


def scripted(world, answer, **more):
    """
    Let every connection of a L{World} end at a L{Scripted}.

    @return: these, oldest first.
    """
    made = []

    def build(transport):
        made.append(Scripted(answer, **more))
        return made[-1]

    world.receiver.build = build
    return made
