"""
irtt: a measurement with a handshake, so that no one can be made to measure for
someone else.  Written from the layout on the wire, for Debian's C{irtt client}.

Little endian throughout.  A datagram begins with the magic and a byte of flags,
an HMAC-MD5 over the whole (itself zero) if the flag says so, and the token of
the session except in the request that opens it.  An echo goes on with a number,
then those of the fields that the session was opened with, then anything.

Here a session is opened without keeping anything: the token is a keyed digest of
the source and of what was asked for, so that only who received it at that address
can use it.  The first echo with a good token makes the counters that C{received
stats} need; of these the last L{Irtt.SESSIONS} are kept.

Not done: the answer's DSCP is not set and its fill is the request's own; a client
that asks for either is told in the parameters and needs C{--loose}.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import time
from collections import Counter, OrderedDict

import attrs
from zope.interface import implementer

from connpool.datagram.info import DatagramInfo
from connpool.datagram.wire import Reply, Wire
from connpool.errors import ProbeFailed
from connpool.interfaces import IDatagramResponder, IReflector

__all__ = ["MAGIC", "Auto", "Irtt", "IrttWire"]

MAGIC = b"\x14\xa7\x5b"
_FIRST = MAGIC[:1]
OPEN, REPLY, CLOSE, SIGNED = 1, 2, 4, 8
_VERSION = 1

# Parameters of the open request.
_P_VERSION, _P_DURATION, _P_INTERVAL, _P_LENGTH, _P_RECEIVED, _P_STAMP, _P_CLOCK = range(1, 8)
_P_FILL = 9
_KNOWN = range(1, 8)

# What "stamp at" and "clock" mean.
_AT_SEND, _AT_RECEIVE, _AT_MIDPOINT = 1, 2, 4
_WALL, _MONOTONIC = 1, 2

#: Bytes of an opening, at least: the answer is 8 longer, half as much again at
#: worst.  Clients that want nothing told send 17 to 21, others 23 and more.
_SHORTEST = 16

#: Hours that a token is good for.
_TOKEN_HOURS = 48


def readUvarint(data: bytes, at: int) -> tuple[int, int]:
    """
    @return: the number and where it ends.
    @raise ValueError: cut short, or over 64 bits.
    """
    value = 0
    for i in range(10):
        if at + i >= len(data):
            raise ValueError("cut short")
        byte = data[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at + i + 1
    raise ValueError("over 64 bits")


def uvarint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def parseParameters(data: bytes) -> dict[int, int]:
    """
    @return: the numbers that we know, by parameter.
    @raise ValueError: malformed, or out of range.
    """
    found: dict[int, int] = {}
    at = 0
    while at < len(data):
        parameter, at = readUvarint(data, at)
        value, at = readUvarint(data, at)
        if parameter == _P_FILL:
            at += value
            if value > 32 or at > len(data):
                raise ValueError("fill is too long")
            continue
        value = value >> 1 ^ -(value & 1)  # zig-zag
        if parameter in _KNOWN:
            found[parameter] = value
    if not (
        0 <= found.get(_P_RECEIVED, 0) <= 3
        and 0 <= found.get(_P_STAMP, 0) <= 4
        and 0 <= found.get(_P_CLOCK, 0) <= 3
        and found.get(_P_DURATION, 1) > 0
        and found.get(_P_INTERVAL, 1) > 0
        and 0 <= found.get(_P_LENGTH, 0) <= 65_535
    ):
        raise ValueError("out of range")
    return found


def formatParameters(parameters: dict[int, int]) -> bytes:
    return b"".join(
        uvarint(parameter) + uvarint(value << 1 if value >= 0 else (-value << 1) - 1)
        for parameter, value in sorted(parameters.items())
        if value
    )


@attrs.define
class _Session:
    count: int = 0
    last: int = 0
    window: int = 0
    valid: bool = False

    def received(self, number: int) -> None:
        """
        One more echo; the window has a bit for each of the last 64, the newest
        lowest, and is not valid while a late one was the last.
        """
        ahead = (number - self.last + (1 << 31)) % (1 << 32) - (1 << 31)
        if ahead >= 0:
            self.window = (self.window << min(ahead, 64) | 1) & (1 << 64) - 1
        self.valid = ahead >= 0
        self.count = self.count + 1 & 0xFFFFFFFF
        self.last = number


@implementer(IDatagramResponder)
class Irtt:
    """
    @param key: clients must have it too (C{--hmac}); L{None} for none.
    """

    SESSIONS = 1024
    #: The open reply is the request and the token.
    excess = 8
    wants = frozenset({"time"})

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key
        self._secret = os.urandom(32)
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self.refused: Counter[str] = Counter()

    def respond(self, data: bytes, info: DatagramInfo) -> bytes | None:
        try:
            return self._respond(data, info)
        except _Refused as e:
            self.refused[str(e)] += 1
            return None

    def _respond(self, data: bytes, info: DatagramInfo) -> bytes:
        if len(data) < 4 or data[:3] != MAGIC:
            raise _Refused("irtt-malformed")
        flags = data[3]
        if flags & REPLY:
            raise _Refused("irtt-reply")  # an answer is never answered
        if flags & ~(OPEN | CLOSE | SIGNED):
            raise _Refused("irtt-malformed")
        at = self._verified(data, flags)
        if flags & OPEN:
            return self._open(data, at, flags, info)
        token = data[at : at + 8]
        settings = self._settings(token, info)
        if flags & CLOSE:
            # the client does not wait for an answer to this, and gets none
            self._sessions.pop(token, None)
            raise _Refused("irtt-closed")
        return self._echo(data, at, token, settings, info)

    def _verified(self, data: bytes, flags: int) -> int:
        """
        @return: where the fields after the HMAC begin.
        """
        if bool(flags & SIGNED) != (self._key is not None):
            raise _Refused("irtt-hmac")
        if self._key is None:
            return 4
        blank = data[:4] + bytes(16) + data[20:]
        if len(data) < 20 or not hmac.compare_digest(
            hmac.digest(self._key, blank, "md5"), data[4:20]
        ):
            raise _Refused("irtt-hmac")
        return 20

    def _finished(self, flags: int, rest: bytes) -> bytes:
        head = MAGIC + bytes([flags | REPLY])
        if self._key is None:
            return head + rest
        digest = hmac.digest(self._key, head + bytes(16) + rest, "md5")
        return head + digest + rest

    # -- opening -----------------------------------------------------------------

    def _open(self, data: bytes, at: int, flags: int, info: DatagramInfo) -> bytes:
        if len(data) < _SHORTEST:
            raise _Refused("irtt-malformed")
        try:
            parameters = parseParameters(data[at:])
        except ValueError:
            raise _Refused("irtt-malformed") from None
        if not parameters.get(_P_VERSION):
            raise _Refused("irtt-malformed")
        if parameters[_P_VERSION] != _VERSION:
            parameters[_P_VERSION] = _VERSION
            flags |= CLOSE
        settings = (
            parameters.get(_P_RECEIVED, 0)
            | parameters.get(_P_STAMP, 0) << 2
            | parameters.get(_P_CLOCK, 0) << 5
            | (self._hour() & 0xFF) << 8
        ).to_bytes(2, "little")
        token = settings + self._mac(settings, info)
        return self._finished(flags, token + formatParameters(parameters))

    @staticmethod
    def _hour() -> int:
        return int(time.monotonic()) // 3600

    def _mac(self, settings: bytes, info: DatagramInfo) -> bytes:
        source = settings + info.port.to_bytes(2, "big") + info.address
        return hashlib.blake2b(source, key=self._secret, digest_size=6).digest()

    def _settings(self, token: bytes, info: DatagramInfo) -> int:
        """
        @return: what the session was opened with.
        """
        if len(token) < 8:
            raise _Refused("irtt-malformed")
        if not hmac.compare_digest(self._mac(token[:2], info), token[2:]):
            raise _Refused("irtt-token")
        if (self._hour() - token[1]) & 0xFF > _TOKEN_HOURS:
            raise _Refused("irtt-token")
        return token[0]

    # -- echoing -----------------------------------------------------------------

    def _echo(self, data: bytes, at: int, token: bytes, settings: int, info: DatagramInfo) -> bytes:
        stats, stamp, clock = settings & 3, settings >> 2 & 7, settings >> 5 & 3
        number = data[at + 8 : at + 12]
        if len(number) < 4:
            raise _Refused("irtt-malformed")
        fields = [token, number]
        if stats:
            session = self._session(token)
            session.received(int.from_bytes(number, "little"))
            if stats & 1:
                fields.append(struct.pack("<I", session.count))
            if stats & 2:
                fields.append(struct.pack("<Q", session.window if session.valid else 0))
        if stamp:
            now = (time.time_ns(), time.monotonic_ns())
            waited = max(now[0] - info.receivedAt, 0)
            received = (now[0] - waited, now[1] - waited)
            if stamp == _AT_MIDPOINT:
                fields += _times((received[0] + now[0]) // 2, (received[1] + now[1]) // 2, clock)
            else:
                if stamp & _AT_RECEIVE:
                    fields += _times(*received, clock)
                if stamp & _AT_SEND:
                    fields += _times(*now, clock)
        head = b"".join(fields)
        if at + len(head) > len(data):
            raise _Refused("irtt-malformed")  # no room for what it asked for
        return self._finished(data[3] & SIGNED, head + data[at + len(head) :])

    def _session(self, token: bytes) -> _Session:
        sessions = self._sessions
        session = sessions.get(token)
        if session is None:
            if len(sessions) >= self.SESSIONS:
                sessions.popitem(last=False)
            session = sessions[token] = _Session()
        else:
            sessions.move_to_end(token)
        return session


def _times(wall: int, monotonic: int, clock: int) -> list[bytes]:
    times = []
    if clock & _WALL:
        times.append(struct.pack("<q", wall))
    if clock & _MONOTONIC:
        times.append(struct.pack("<q", monotonic))
    return times


class _Refused(Exception):
    """
    No answer, and the reason to count.
    """


@implementer(IReflector)
class Auto:
    """
    irtt by its magic, everything else comes back as it was.
    """

    excess = Irtt.excess
    # no kernel times: they would cost every echo, and irtt's own server has none
    wants: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._irtt = Irtt()
        self.refused = self._irtt.refused

    def reflects(self, firstBytes: bytes) -> bool:
        return _FIRST not in firstBytes

    def respond(self, data: bytes, info: DatagramInfo) -> bytes | None:
        return self._irtt.respond(data, info) if data[:3] == MAGIC else data


class IrttWire(Wire):
    """
    The prober's side: counts and window, both times, by the wall clock.
    """

    #: header, token, number, count, window, and two times
    minimum = 4 + 8 + 4 + 4 + 8 + 8 + 8

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._token = b""
        self._asked: dict[int, int] = {}

    def opening(self, interval: float, duration: float) -> bytes | None:
        asked = {
            _P_VERSION: _VERSION,
            _P_DURATION: int(min(max(duration, 1.0), 86_400.0) * 1e9),
            _P_INTERVAL: max(int(interval * 1e9), 1),
            _P_LENGTH: self.size,
            _P_RECEIVED: 3,
            _P_STAMP: _AT_SEND | _AT_RECEIVE,
            _P_CLOCK: _WALL,
        }
        self._asked = asked
        return MAGIC + bytes([OPEN]) + formatParameters(asked)

    def opened(self, data: bytes) -> bool:
        if data[:3] != MAGIC or len(data) < 12 or not data[3] & OPEN or not data[3] & REPLY:
            return False
        if data[3] & CLOSE:
            raise ProbeFailed("the irtt server has another version of the protocol")
        try:
            given = parseParameters(data[12:])
        except ValueError:
            return False
        for what, name in ((_P_LENGTH, "length"), (_P_INTERVAL, "interval")):
            if given.get(what) != self._asked[what]:
                raise ProbeFailed(
                    f"the irtt server allows {name} {given.get(what)}, not {self._asked[what]}"
                )
        for what in (_P_RECEIVED, _P_STAMP, _P_CLOCK):
            if given.get(what) != self._asked[what]:
                raise ProbeFailed("the irtt server does not give counts and times")
        self._token = data[4:12]
        return True

    def closing(self) -> bytes | None:
        return MAGIC + bytes([CLOSE]) + self._token

    def request(self, number: int) -> bytes:
        head = MAGIC + b"\0" + self._token + struct.pack("<I", number)
        return head + bytes(self.size - len(head))

    def reply(self, data: bytes) -> Reply | None:
        if len(data) != self.size or data[:4] != MAGIC + bytes([REPLY]):
            return None
        if data[4:12] != self._token:
            return None
        number, count, _, received, sent = struct.unpack_from("<IIQqq", data, 12)
        return Reply(number, received, sent, count)
