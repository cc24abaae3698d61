"""
A peer for C{cpt/1} in the standard library alone, written from docs/protocol.rst.

It imports nothing of C{connpool}: what it cannot do by the document, the
document does not say.  Both roles, blocking sockets, one file after the other.
"""

import collections
import hashlib
import os
import struct
import zlib

PREAMBLE = b"\x00CPT1\r\n\x1a"
HELLO, AUTH, READY, JOIN, JOINED, PING, PONG, GOAWAY, ERROR = range(1, 10)
(PUT, OFFER, ACCEPT, REJECT, DATA, DIGESTS, REPAIR, REVOKE, COMMIT, PROGRESS, ACK, RECEIPT) = range(
    0x10, 0x1C
)
CANCEL, DIRECTORY, PUTS, HOLE, ASK, HAVE, PACKED = range(0x1C, 0x23)
CAPABILITIES = ["join", "best", "earlier", "directories", "puts", "holes", "update", "zstd"]
SMALL_BLOCK = 1 << 20


# -- MessagePack, as much as the document uses -------------------------------------


def pack(value):
    if value is None:
        return b"\xc0"
    if value is True or value is False:
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        if 0 <= value < 128:
            return bytes([value])
        return (
            b"\xcf" + struct.pack(">Q", value) if value > 0 else b"\xd3" + struct.pack(">q", value)
        )
    if isinstance(value, bytes):
        return b"\xc5" + struct.pack(">H", len(value)) + value
    if isinstance(value, str):
        raw = value.encode()
        return b"\xda" + struct.pack(">H", len(raw)) + raw
    return b"\xdc" + struct.pack(">H", len(value)) + b"".join(map(pack, value))


def unpack(data):
    value, at = _unpack(data, 0)
    assert at == len(data), "bytes after the array"
    return value


_SIZED = {
    0xC4: (bytes, ">B"),
    0xC5: (bytes, ">H"),
    0xC6: (bytes, ">I"),
    0xD9: (str, ">B"),
    0xDA: (str, ">H"),
    0xDB: (str, ">I"),
    0xDC: (list, ">H"),
    0xDD: (list, ">I"),
}
_NUMBERS = {
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}


def _unpack(data, at):
    code = data[at]
    at += 1
    if code < 0x80:
        return code, at
    if code >= 0xE0:
        return code - 256, at
    if code in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[code], at
    if code in _NUMBERS:
        form = _NUMBERS[code]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if code in _SIZED:
        kind, form = _SIZED[code]
        count = struct.unpack_from(form, data, at)[0]
        at += struct.calcsize(form)
    else:
        kind = {0x90: list, 0xA0: str, 0xB0: str}[code & 0xF0]
        count = code & (0x0F if kind is list else 0x1F)
    if kind is list:
        values = []
        for _ in range(count):
            value, at = _unpack(data, at)
            values.append(value)
        return values, at
    raw = data[at : at + count]
    return (raw.decode() if kind is str else raw), at + count


# -- digests ---------------------------------------------------------------------------


def digests(content, block):
    return [
        hashlib.sha256(content[at : at + block]).digest() for at in range(0, len(content), block)
    ]


def root(content, block):
    head = b"cpt1-root\0" + struct.pack(">QQ", len(content), block)
    return hashlib.sha256(head + b"".join(digests(content, block))).digest()


# -- frames ------------------------------------------------------------------------------


def head(kind, control, stream, length):
    header = struct.pack(">BBHII", kind, 0, len(control), stream, length)
    return header + struct.pack(">I", zlib.crc32(header + control))


class Channel:
    """
    Frames over a socket.
    """

    def __init__(self, socket):
        self.socket = socket

    def read(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise EOFError(f"the connection ended {count - len(data)} bytes early")
            data += more
        return data

    def frame(self, kind, stream, fields, data=b""):
        control = pack([*fields, []])
        return head(kind, control, stream, len(data)) + control + data

    def send(self, *args):
        wire = self.frame(*args)
        self.socket.sendall(wire)
        return wire

    def receive(self):
        """
        @return: type, stream, fields, data, and the frame as it was.
        """
        header = self.read(16)
        kind, flags, control, stream, length, checked = struct.unpack(">BBHIII", header)
        assert flags == 0
        raw = self.read(control)
        assert checked == zlib.crc32(header[:12] + raw)
        return kind, stream, unpack(raw), self.read(length), header + raw


class Sender(Channel):
    """
    @ivar ticket: for a further connection to join.
    """

    def greet(self):
        hello = self.frame(
            HELLO, 0, [[1], "peer/1", CAPABILITIES, ["sha256"], os.urandom(32), None, []]
        )
        self.socket.sendall(PREAMBLE + hello)
        assert self.read(8) == PREAMBLE
        kind, _, fields, _, theirs = self.receive()
        assert kind == HELLO
        assert 1 in fields[0]
        assert "sha256" in fields[3]
        self.capabilities = set(fields[2]) & set(CAPABILITIES)
        self.limits = fields[5]
        self.best = "best" in fields[2]
        transcript = hashlib.sha256(hello + theirs).digest()
        self.send(AUTH, 0, [transcript, "none", "", b""])
        kind, _, fields, _, _ = self.receive()
        assert kind == READY
        assert fields[0] == transcript
        self.ticket = fields[2]
        self.stream = 0
        return self

    def join(self, ticket):
        self.send(JOIN, 0, [ticket])
        assert self.receive()[0] == JOINED
        return self

    def put(self, name, content, key=None, durability="none"):
        """
        @return: the number of the stream; L{answers} has the answer.
        """
        self.stream += 1
        fields = [os.urandom(16), name, key or os.urandom(32), root(content, SMALL_BLOCK)]
        self.send(PUT, self.stream, [*fields, None, False, "", durability], content)
        return self.stream

    def puts(self, files, ifExists="", durability="none"):
        """
        @param files: names with contents; a third value is a key.
        @return: the numbers of their streams.
        """
        assert "puts" in self.capabilities
        entries = [
            [os.urandom(16), name, *(key or [os.urandom(32)]), root(data, SMALL_BLOCK), len(data)]
            for name, data, *key in files
        ]
        first = self.stream + 1
        self.stream += len(files)
        content = b"".join(data for _, data, *_ in files)
        self.send(PUTS, first, [ifExists, durability, entries], content)
        return range(first, first + len(files))

    def directory(self, name, modified=None, durability="none"):
        """
        @return: the number of the stream; L{answers} has the answer.
        """
        assert "directories" in self.capabilities
        self.stream += 1
        self.send(DIRECTORY, self.stream, [name, modified, durability])
        return self.stream

    def answers(self, streams):
        """
        @return: stream to C{(type, fields)} for all of C{streams}.
        """
        found = {}
        while set(streams) - set(found):
            kind, stream, fields, _, _ = self.receive()
            if kind == ACK:
                for first, count in fields[0]:
                    found.update(dict.fromkeys(range(first, first + count), (ACK, fields)))
            elif kind == PING:
                self.send(PONG, 0, [fields[0]])
            elif kind in (RECEIPT, REJECT):
                found[stream] = (kind, fields)
            else:
                assert kind in (PROGRESS, PONG)
        return found

    def offer(self, name, content, block, key=None, resumeKey=None, size=-1):
        """
        @return: stream, and the numbers of the blocks that the receiver lacks.
        """
        self.stream += 1
        size = len(content) if size == -1 else size
        fields = [os.urandom(16), name, key or os.urandom(32), size, block, resumeKey]
        self.send(OFFER, self.stream, [*fields, None, False, "", "none", False])
        while True:
            kind, stream, fields, data, _ = self.receive()
            if kind == ACCEPT:
                break
            assert kind in (PROGRESS, PING), (kind, fields)
        assert stream == self.stream
        missing = set(range(-(-len(content) // block)))
        at = 8 * fields[2]
        own = digests(content, block)
        for first, count in struct.iter_unpack(">II", data[:at]):
            for number in range(first, first + count):
                if data[at : at + 32] == own[number]:
                    missing.discard(number)
                else:
                    self.send(REVOKE, stream, [], struct.pack(">I", number))
                at += 32
        self.held = fields[2]
        return self.stream, sorted(missing)

    def blocks(self, stream, content, block, numbers, digestsFirst=False):
        for number in numbers:
            data = content[number * block : (number + 1) * block]
            digest = hashlib.sha256(data).digest()
            if digestsFirst:
                self.send(DIGESTS, stream, [number], digest)
            # a block in two runs
            half = len(data) // 2
            if half:
                self.send(DATA, stream, [number * block], data[:half])
            self.send(DATA, stream, [number * block + half], data[half:])
            if not digestsFirst:
                self.send(DIGESTS, stream, [number], digest)

    def hole(self, stream, offset, length):
        assert "holes" in self.capabilities
        self.send(HOLE, stream, [offset, length])

    def repeated(self, stream, offset, byte, count):
        """
        Send C{count} times C{byte}: a zstd frame by hand, one block of repetition (RFC 8878).
        """
        assert "zstd" in self.capabilities
        assert count < 1 << 17
        frame = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", count)
        frame += struct.pack("<I", count << 3 | 3)[:3] + byte
        self.send(PACKED, stream, [offset, count], frame)

    def ask(self, files):
        """
        @param files: name, size, time and root of each.
        @return: the answers.
        """
        assert "update" in self.capabilities
        self.stream += 1
        self.send(ASK, self.stream, [[list(file) for file in files]])
        while True:
            kind, stream, fields, data, _ = self.receive()
            if kind == HAVE:
                assert (stream, fields, len(data)) == (self.stream, [[]], len(files))
                return list(data)
            assert kind in (PING, PONG)

    def ping(self):
        """
        Until all that was sent here has arrived.
        """
        self.send(PING, 0, [77])
        while self.receive()[:1] != (PONG,):
            pass

    def commit(self, stream, content, block):
        """
        @return: the answer's type and fields, after all repairs.
        """
        while True:
            self.send(COMMIT, stream, [len(content), root(content, block)])
            while True:
                kind, _, fields, data, _ = self.receive()
                if kind in (RECEIPT, REJECT):
                    return kind, fields
                if kind == REPAIR:
                    numbers = [n for (n,) in struct.iter_unpack(">I", data)]
                    self.blocks(stream, content, block, numbers)
                    break
                assert kind in (PROGRESS, PING, PONG)


class Receiver(Channel):
    """
    Keeps what it gets in C{files} and C{directories}; damages the first block of each
    large file once, to see it repaired.
    """

    def __init__(self, socket, capabilities=(), refuses=()):
        super().__init__(socket)
        self.capabilities = ["directories", *capabilities]
        #: levels that it does not reach, and those that it was asked for
        self.refuses = refuses
        self.asked = []
        self.files = {}
        self.directories = {}
        self.damaged = 0
        #: how many of each type came
        self.frames = collections.Counter()

    def serve(self):
        assert self.read(8) == PREAMBLE
        kind, _, fields, _, theirs = self.receive()
        assert kind == HELLO
        assert "sha256" in fields[3]
        self.socket.sendall(PREAMBLE)
        limits = [None, 4096, 1 << 20, 16_384, 4, 60]
        hello = self.send(
            HELLO,
            0,
            [[1], "peer/1", self.capabilities, ["sha256"], os.urandom(32), limits, ["none"]],
        )
        kind, _, fields, _, _ = self.receive()
        assert kind == AUTH
        transcript = hashlib.sha256(theirs + hello).digest()
        assert fields[0] == transcript
        self.send(READY, 0, [transcript, os.urandom(16), os.urandom(32), "anonymous"])
        self.open = {}
        try:
            while True:
                self.frameReceived(*self.receive())
        except EOFError:
            return

    def _refused(self, stream, durability):
        assert durability in ["none", "data", "full", *self.capabilities]
        self.asked.append(durability)
        if durability in self.refuses:
            self.send(REJECT, stream, ["unsupported", False, "this level is not reached here"])
        return durability in self.refuses

    def frameReceived(self, kind, stream, fields, data, raw):
        self.frames[kind] += 1
        if kind == PING:
            self.send(PONG, 0, [fields[0]])
        elif kind == PUT:
            assert root(data, SMALL_BLOCK) == fields[3]
            assert len(data) <= 4096
            if self._refused(stream, fields[7]):
                return
            self.files[fields[1]] = data
            self.send(ACK, 0, [[[stream, 1]], "none", "memory", 1])
        elif kind == PUTS:
            assert "puts" in self.capabilities
            at = 0
            for entry in fields[2]:
                content = data[at : at + entry[4]]
                at += entry[4]
                assert root(content, SMALL_BLOCK) == entry[3]
                assert len(content) <= 4096
                self.files[entry[1]] = content
            assert at == len(data)
            self.asked += [fields[1]] * len(fields[2])
            self.send(ACK, 0, [[[stream, len(fields[2])]], "none", "memory", 1])
        elif kind == ASK:
            assert "update" in self.capabilities
            sizes = {name: len(content) for name, content in self.files.items()}
            have = [1 if sizes.get(file[0]) == file[1] else 2 for file in fields[0]]
            self.send(HAVE, stream, [], bytes(have))
        elif kind == DIRECTORY:
            # what is in it came before
            assert not self.open
            self.directories[fields[0]] = fields[1]
            self.send(ACK, 0, [[[stream, 1]], "none", "memory", 1])
        elif kind == OFFER:
            if self._refused(stream, fields[9]):
                return
            self.open[stream] = {
                "name": fields[1],
                "block": fields[4],
                "content": bytearray(fields[3]),
                "digests": {},
            }
            self.send(ACCEPT, stream, ["new", 0, 0], b"")
        elif kind == DATA:
            content = self.open[stream]["content"]
            content[fields[0] : fields[0] + len(data)] = data
            if fields[0] == 0 and not self.damaged:
                self.damaged = 1
                content[0] ^= 1
        elif kind == HOLE:
            assert "holes" in self.capabilities
            file, (start, length) = self.open[stream], fields[:2]
            file["content"][start : start + length] = bytes(length)
            block = file["block"]
            if start % block == 0 and length % block == 0:
                # whole blocks: nobody says their digests
                for number in range(start // block, (start + length) // block):
                    file["digests"][number] = hashlib.sha256(bytes(block)).digest()
        elif kind == DIGESTS:
            file = self.open[stream]
            for at in range(0, len(data), 32):
                file["digests"][fields[0] + at // 32] = data[at : at + 32]
        elif kind == COMMIT:
            file = self.open[stream]
            own = digests(bytes(file["content"]), file["block"])
            wrong = [n for n, digest in enumerate(own) if file["digests"].get(n) != digest]
            if wrong:
                self.send(REPAIR, stream, [], struct.pack(f">{len(wrong)}I", *wrong))
                return
            content = bytes(file["content"])
            assert root(content, file["block"]) == fields[1]
            self.files[file["name"]] = content
            receipt = ["stored", file["name"], len(content), "none", "memory", "verified", "sha256"]
            self.send(RECEIPT, stream, [*receipt, fields[1], 1])
            del self.open[stream]
        else:
            raise AssertionError(f"frame 0x{kind:02x}")
