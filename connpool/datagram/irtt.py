"""
irtt: a measurement with a handshake, so that no one can be made to measure for
someone else.  Written from the layout on the wire, for Debian's C{irtt client}.

Little endian throughout.  A datagram begins with the magic and a byte of flags,
an HMAC-MD5 over the whole (itself zero) if the flag says so, and the token of
the session except in the request that opens it.  An echo goes on with a number,
then those of the fields that the session was opened with, then anything.

Here a session is opened without keeping anything: the token is a keyed digest of
the source, of the parameters that were asked for and of a number, so that only a
client that received it at that address can use it, and each opening gives another.
The first echo with a good token makes the counters that C{received stats} need, in
place of those of an earlier session of the same source; there are L{Irtt.SESSIONS}.

Not done: the answer's DSCP is not set and its fill is the request's own; a client
that asks for either is told in the parameters and needs C{--loose}.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import time
from collections import Counter

import attrs
from zope.interface import implementer

from connpool.datagram.info import DatagramInfo
from connpool.datagram.sessions import SessionTable, sourceOf
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

# Values of "stamp at" and "clock".
_AT_SEND, _AT_RECEIVE, _AT_MIDPOINT = 1, 2, 4
_WALL, _MONOTONIC = 1, 2

#: Bytes of an opening, at least: the answer is 8 longer, half as much again at
#: worst.  Clients that want nothing told send 17 to 21, others 23 and more.
_SHORTEST_BYTES = 16

#: A token begins with 7 bits of settings, 4 of the time and 13 of a number.
_TOKEN_HEAD_BYTES = 3
_PERIOD_SECONDS = 12 * 3600
_PERIODS, _NUMBERS = 1 << 4, 1 << 13
#: Periods after which a token is no good any more.
_TOKEN_PERIODS = 4


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


def _signed(key: bytes | None, flags: int, rest: bytes) -> bytes:
    """
    @return: a datagram of C{flags} and C{rest}, with its HMAC if there is a key.
    """
    if key is None:
        return MAGIC + bytes([flags]) + rest
    head = MAGIC + bytes([flags | SIGNED])
    return head + hmac.digest(key, head + bytes(16) + rest, "md5") + rest


def _restOf(key: bytes | None, data: bytes) -> int | None:
    """
    @param data: at least 4 bytes.
    @return: where the fields after the HMAC begin; L{None} if it is wrong, or if
        there is one and no key, or the other way round.
    """
    if bool(data[3] & SIGNED) != (key is not None):
        return None
    if key is None:
        return 4
    blank = data[:4] + bytes(16) + data[20:]
    good = len(data) >= 20 and hmac.compare_digest(hmac.digest(key, blank, "md5"), data[4:20])
    return 20 if good else None


@attrs.define
class _Session:
    """
    The counters of one session.

    @ivar token: the one it was opened with.
    @ivar former: the token of the session before it, whose last datagrams may
        still be under way.
    """

    token: bytes
    former: bytes = b""
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
    #: Answers carry a flag, and are never answered.
    symmetricPorts = frozenset({2112})

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key
        self._secret = os.urandom(32)
        self._sessions: SessionTable[_Session] = SessionTable(self.SESSIONS)
        self._openings = 0
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
        at = _restOf(self._key, data)
        if at is None:
            raise _Refused("irtt-hmac")
        if flags & OPEN:
            return self._open(data, at, flags, info)
        token = data[at : at + 8]
        settings = self._settings(token, info)
        if flags & CLOSE:
            # the client does not wait for an answer to this, and gets none
            self._close(token, info)
            raise _Refused("irtt-closed")
        return self._echo(data, at, token, settings, info)

    def _finished(self, flags: int, rest: bytes) -> bytes:
        return _signed(self._key, flags | REPLY, rest)

    # -- opening -----------------------------------------------------------------

    def _open(self, data: bytes, at: int, flags: int, info: DatagramInfo) -> bytes:
        if len(data) < _SHORTEST_BYTES:
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
        self._openings = (self._openings + 1) % _NUMBERS
        head = (
            parameters.get(_P_RECEIVED, 0)
            | parameters.get(_P_STAMP, 0) << 2
            | parameters.get(_P_CLOCK, 0) << 5
            | self._period() << 7
            | self._openings << 11
        ).to_bytes(_TOKEN_HEAD_BYTES, "little")
        token = head + self._mac(head, info)
        return self._finished(flags, token + formatParameters(parameters))

    @staticmethod
    def _period() -> int:
        return int(time.monotonic()) // _PERIOD_SECONDS % _PERIODS

    def _mac(self, head: bytes, info: DatagramInfo) -> bytes:
        size = 8 - _TOKEN_HEAD_BYTES
        return hashlib.blake2b(head + sourceOf(info), key=self._secret, digest_size=size).digest()

    def _settings(self, token: bytes, info: DatagramInfo) -> int:
        """
        @return: the settings that the session was opened with.
        """
        if len(token) < 8:
            raise _Refused("irtt-malformed")
        head = token[:_TOKEN_HEAD_BYTES]
        if not hmac.compare_digest(self._mac(head, info), token[_TOKEN_HEAD_BYTES:]):
            raise _Refused("irtt-token")
        bits = int.from_bytes(head, "little")
        if (self._period() - (bits >> 7)) % _PERIODS > _TOKEN_PERIODS:
            raise _Refused("irtt-token")
        return bits & 0x7F

    # -- echoing -----------------------------------------------------------------

    def _echo(self, data: bytes, at: int, token: bytes, settings: int, info: DatagramInfo) -> bytes:
        stats, stamp, clock = settings & 3, settings >> 2 & 7, settings >> 5 & 3
        number = data[at + 8 : at + 12]
        if len(number) < 4:
            raise _Refused("irtt-malformed")
        fields = [token, number]
        if stats:
            session = self._session(token, info)
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

    def _session(self, token: bytes, info: DatagramInfo) -> _Session:
        """
        @return: the session of this token, a new one if it is the source's newest.
        """
        source = sourceOf(info)
        session = self._sessions.get(info, source)
        if session is None or token not in {session.token, session.former}:
            session = _Session(token, b"" if session is None else session.token)
            self._sessions.put(info, source, session)
        elif token == session.former:
            raise _Refused("irtt-closed")
        return session

    def _close(self, token: bytes, info: DatagramInfo) -> None:
        source = sourceOf(info)
        session = self._sessions.get(info, source)
        if session is not None and session.token == token:
            self._sessions.pop(info, source)


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
    symmetricPorts: frozenset[int] = frozenset()
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
    signedMinimum = minimum + 16

    def __init__(self, size: int, key: bytes | None = None) -> None:
        super().__init__(size, key)
        self._token = b""
        self._asked: dict[int, int] = {}
        #: what earlier sessions of this run counted, and this one so far
        self._before = self._most = 0

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
        return _signed(self._key, OPEN, formatParameters(asked))

    def opened(self, data: bytes) -> bool:
        if data[:3] != MAGIC or len(data) < 12 or not data[3] & OPEN or not data[3] & REPLY:
            return False
        at = _restOf(self._key, data)
        if at is None:
            return False
        if data[3] & CLOSE:
            raise ProbeFailed("the irtt server has another version of the protocol")
        try:
            given = parseParameters(data[at + 8 :])
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
        self._token = data[at : at + 8]
        self._before += self._most
        self._most = 0
        return True

    def closing(self) -> bytes | None:
        return _signed(self._key, CLOSE, self._token)

    def request(self, number: int) -> bytes:
        head = self._token + struct.pack("<I", number & 0xFFFFFFFF)
        room = self.size - (4 if self._key is None else 20)
        return _signed(self._key, 0, head + bytes(room - len(head)))

    def reply(self, data: bytes) -> Reply | None:
        if len(data) != self.size or data[:3] != MAGIC or data[3] & ~SIGNED != REPLY:
            return None
        at = _restOf(self._key, data)
        if at is None or data[at : at + 8] != self._token:
            return None
        number, count, _, received, sent = struct.unpack_from("<IIQqq", data, at + 8)
        self._most = max(self._most, count)
        return Reply(number, received, sent, self._before + count)
