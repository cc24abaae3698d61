"""
C{recvmmsg(2)} and C{sendmmsg(2)}: a batch of datagrams for one system call.

On loopback a datagram costs the kernel about 3 microseconds and Python's socket
module another 2 each way.  A L{Batch} receives into buffers of its own and can
send them back from there, so that a datagram that is only echoed never becomes a
Python object; everything about a batch is read and written as strided views.

Only where the C structures are the ones written here (Linux, 64 bit, little
endian); elsewhere L{available} is false and ports read one by one.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["Batch", "available"]

_libc: Any = None
if sys.platform == "linux" and sys.byteorder == "little" and ctypes.sizeof(ctypes.c_void_p) == 8:
    _libc = ctypes.CDLL(None, use_errno=True)
    for _name in ("recvmmsg", "sendmmsg", "sendmsg"):
        if not hasattr(_libc, _name):
            _libc = None
            break


def available() -> bool:
    """
    Say whether this system can.
    """
    return _libc is not None


if _libc is not None:
    _recvmmsg = _libc.recvmmsg
    _recvmmsg.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    _sendmmsg = _libc.sendmmsg
    _sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
    _sendmsg = _libc.sendmsg
    _sendmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]

#: struct mmsghdr: name, namelen, iov, iovlen, control, controllen, flags | len
_HEADER = struct.Struct("=QI4xQQQQI4xI4x")
#: struct iovec: base, length
_IOVEC = struct.Struct("=QQ")
_CMSG = struct.Struct("=QII")
_SEGMENT_MESSAGE = struct.Struct("=QIIH6x")

#: 64 KiB for a datagram and one odd cache line: with a round distance all
#: datagrams would begin in the same set of the processor's cache.
STRIDE_BYTES = 65_536 + 64
ROOM_BYTES = 65_535

# Offsets in 32-bit words.
_W = _HEADER.size // 4
_CONTROLLEN = 10
_FLAGS = 12
_LENGTH = 14
_IOV_W = _IOVEC.size // 4
_IOV_LENGTH = 2

#: Bytes of the destination, where it is the only control message.
_PKTINFO, _PKTINFO6 = 32, 40

#: Larger datagrams might have to be fragmented, which segments cannot be.
SEGMENT_BYTES = 1200
_UDP_SEGMENT = 103
#: More than this path takes in one segment, or a device or kernel that cannot at
#: all.  Others say something of the receiver, or of the moment.
_TOO_LARGE = {errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.EOPNOTSUPP}

#: Every message that L{connpool.datagram.port} asks for, of both families.
_CONTROL_BYTES = 256
_CONTROL_W = _CONTROL_BYTES // 4


#: The place and errno of each datagram that was not sent.
Failures = list[tuple[int, int]]


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Batch:
    """
    Room for C{size} datagrams with their senders and control messages.

    Methods that take C{n} look at the first C{n} datagrams of the last
    L{receive}.

    @param control: whether control messages are received.
    """

    def __init__(self, family: int, size: int, control: bool) -> None:
        self.size = size
        self.control = control
        self.six = family == socket.AF_INET6
        self.nameSize = nameSize = 28 if self.six else 16
        self._payload = memoryview(bytearray(size * STRIDE_BYTES))
        self._firstBytes = self._payload[::STRIDE_BYTES]
        names = bytearray(size * nameSize)
        controls = bytearray(size * _CONTROL_BYTES)
        iovecs = bytearray(size * _IOVEC.size)
        headers = bytearray(size * _HEADER.size)
        outgoing = bytearray(size * _HEADER.size)
        payloadAt, namesAt = _address(self._payload.obj), _address(names)  # type: ignore[arg-type]  # it is the bytearray above
        controlsAt, iovecsAt = _address(controls), _address(iovecs)
        for i in range(size):
            _IOVEC.pack_into(iovecs, i * _IOVEC.size, payloadAt + i * STRIDE_BYTES, ROOM_BYTES)
            _HEADER.pack_into(
                headers,
                i * _HEADER.size,
                namesAt + i * nameSize,
                nameSize,
                iovecsAt + i * _IOVEC.size,
                1,
                controlsAt + i * _CONTROL_BYTES if control else 0,
                _CONTROL_BYTES if control else 0,
                0,
                0,
            )
        self._headerTemplate = bytes(headers)
        self._iovecTemplate = bytes(iovecs)
        self._names = memoryview(names)
        self._controls = memoryview(controls)
        self._controlWords = self._controls.cast("I")
        self._iovecs = memoryview(iovecs)
        self._iovecWords = self._iovecs.cast("I")
        self._headers = memoryview(headers)
        self._headerWords = self._headers.cast("I")
        self._outgoing = memoryview(outgoing)
        self._headersAt = _address(headers)
        self._outgoingAt = _address(outgoing)
        #: one message of all datagrams, and where its control message ends
        self._joined = bytearray(_HEADER.size)
        self._joinedAt = _address(self._joined)
        self._segment = bytearray(_CONTROL_BYTES + _SEGMENT_MESSAGE.size)
        self._iovecsAt, self._segmentAt = iovecsAt, _address(self._segment)
        self._namesAt = namesAt
        #: the largest segments that were not found impossible
        self._largest = SEGMENT_BYTES
        self._noFlags = bytes(4 * size)
        alone = _PKTINFO6 if self.six else _PKTINFO
        self._onlyDestinations = alone.to_bytes(4, "little") * size
        self._zeros = memoryview(bytes(4 * size)).cast("I")
        self._dirty = 0

    # -- receiving -------------------------------------------------------------

    def receive(self, fd: int, limit: int) -> int:
        """
        @return: how many datagrams were there, at most C{limit}; or the
            negative errno.
        """
        dirty = self._dirty
        if dirty:
            self._headers[: dirty * 64] = self._headerTemplate[: dirty * 64]
            self._iovecs[: dirty * 16] = self._iovecTemplate[: dirty * 16]
        n: int = _recvmmsg(fd, self._headersAt, limit, socket.MSG_DONTWAIT, None)
        if n < 0:
            self._dirty = 0
            return -ctypes.get_errno()
        self._dirty = n
        return n

    def senders(self, n: int) -> bytes:
        """
        @return: the C{sockaddr}s one after the other, C{nameSize} bytes each.
        """
        return self._names[: n * self.nameSize].tobytes()

    def lengths(self, n: int) -> list[int]:
        return self._headerWords[_LENGTH : n * _W : _W].tolist()

    def truncated(self, n: int) -> list[int]:
        """
        @return: which did not fit; empty almost always.
        """
        flags = self._headerWords[_FLAGS : n * _W : _W]
        if flags.tobytes() == self._noFlags[: 4 * n]:
            return []
        return [i for i, flag in enumerate(flags) if flag & socket.MSG_TRUNC]

    def firstBytes(self, n: int) -> bytes:
        """
        @return: the first byte of each datagram; that of an empty one is
            left over from earlier.
        """
        return self._firstBytes[:n].tobytes()

    def payload(self, i: int, length: int) -> memoryview:
        """
        @return: the datagram, until its answer is set or the next L{receive}.
        """
        return self._payload[i * STRIDE_BYTES : i * STRIDE_BYTES + length]

    def messages(self, i: int) -> Iterator[tuple[int, int, bytes]]:
        """
        @return: the control messages of datagram C{i}.
        """
        start = i * _CONTROL_BYTES
        end = start + self._headerWords[i * _W + _CONTROLLEN]
        while start + _CMSG.size <= end:
            size, level, kind = _CMSG.unpack_from(self._controls, start)
            if size < _CMSG.size or start + size > end:
                return
            yield level, kind, self._controls[start + _CMSG.size : start + size].tobytes()
            start += (size + 7) & ~7

    def plainDestinations(self, n: int) -> bool:
        """
        Say whether the destination is all that the kernel says of each, and is a
        plain address of ours; if so the answers are set to leave from it, by
        whatever interface.
        """
        own = self._headerWords[_CONTROLLEN : n * _W : _W].tobytes()
        if own != self._onlyDestinations[: 4 * n]:
            # an adopted socket may have been told to say more
            return False
        words = self._controlWords
        end = n * _CONTROL_W
        if self.six:
            # cmsg header, then 16 bytes of address and the interface
            first = self._controls[16 : n * _CONTROL_BYTES : _CONTROL_BYTES].tobytes()
            # multicast; link-local, which must keep its interface; IPv4-mapped
            if b"\xff" in first or b"\xfe" in first or b"\0" in first:
                return False
            words[8:end:_CONTROL_W] = self._zeros[:n]
            return True
        # interface, our address, the header's destination
        if words[5:end:_CONTROL_W] != words[6:end:_CONTROL_W]:
            return False
        words[4:end:_CONTROL_W] = self._zeros[:n]
        return True

    # -- answering -------------------------------------------------------------

    def reflect(self, n: int) -> None:
        """
        Make each datagram its own answer.
        """
        lengths = self._headerWords[_LENGTH : n * _W : _W]
        self._iovecWords[_IOV_LENGTH : n * _IOV_W : _IOV_W] = lengths

    def answer(self, i: int, data: bytes, source: bytes) -> None:
        """
        Set what goes back for datagram C{i}.

        @param source: a control message that names our address; or nothing.
        """
        length = len(data)
        start = i * STRIDE_BYTES
        self._payload[start : start + length] = data
        self._iovecWords[i * _IOV_W + _IOV_LENGTH] = length
        if self.control:
            self._controls[i * _CONTROL_BYTES : i * _CONTROL_BYTES + len(source)] = source
            self._headerWords[i * _W + _CONTROLLEN] = len(source)

    def sendJoined(self, fd: int, n: int, length: int) -> bool:
        """
        Send the first C{n} back in one go, which all have the same sender and
        C{length}: if they also have our own address in common, the kernel can
        take them as one datagram that it cuts up (UDP_SEGMENT), and walks
        through its layers once.

        @return: whether it did.  If not, nothing was sent.
        """
        if (
            not 0 < length <= self._largest
            or n * length > ROOM_BYTES - 64
            or (self.control and not self._oneDestination(n))
        ):
            return False
        own = self._headerWords[_CONTROLLEN]
        control = self._segment
        if own:
            # the message that names our address comes first
            control[:own] = self._controls[:own]
        _SEGMENT_MESSAGE.pack_into(control, own, 18, 17, _UDP_SEGMENT, length)
        _HEADER.pack_into(
            self._joined,
            0,
            self._namesAt,
            self._headerWords[2],
            self._iovecsAt,
            n,
            self._segmentAt,
            own + _SEGMENT_MESSAGE.size,
            0,
            0,
        )
        if _sendmsg(fd, self._joinedAt, socket.MSG_DONTWAIT) >= 0:
            return True
        if ctypes.get_errno() in _TOO_LARGE:
            self._largest = length - 1
        return False

    def _oneDestination(self, n: int) -> bool:
        """
        After L{plainDestinations}: whether it was the same for all.
        """
        for word in range(4, 8) if self.six else (6,):
            column = self._controlWords[word : n * _CONTROL_W : _CONTROL_W].tobytes()
            if column != column[:4] * n:
                return False
        return True

    def send(self, fd: int, n: int) -> Failures:
        """
        Send the first C{n} back.

        @return: those that did not go out.
        """
        return self._send(fd, self._headersAt, n)

    def sendSome(self, fd: int, indexes: Sequence[int]) -> Failures:
        """
        Send these back.

        @return: those that did not go out, by their place in C{indexes}.
        """
        headers, outgoing = self._headers, self._outgoing
        for k, i in enumerate(indexes):
            outgoing[k * 64 : k * 64 + 64] = headers[i * 64 : i * 64 + 64]
        return self._send(fd, self._outgoingAt, len(indexes))

    @staticmethod
    def _send(fd: int, at: int, n: int) -> Failures:
        failures: Failures = []
        done = 0
        while done < n:
            sent: int = _sendmmsg(fd, at + done * 64, n - done, socket.MSG_DONTWAIT)
            if sent > 0:
                done += sent
            else:
                # only the first of a call fails; those after it get their turn
                failures.append((done, ctypes.get_errno()))
                done += 1
        return failures
