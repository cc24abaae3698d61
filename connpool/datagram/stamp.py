"""
STAMP, the two-way measurement standard that routers speak: RFC 8762, with the
extensions of RFC 8972.

A Session-Sender's packet has 44 bytes, or 112 when it is authenticated, and may
go on with TLVs.  The Session-Reflector's answer has the same length: its own number
and times in front and everything of the sender's copied behind.

An answer that comes back, from a reflector or an echo, is not answered: it would
go round for ever, with new times in it each time so that no one could see it.
It is known by the time it quotes, which is one that we wrote a moment ago.

Deviation: RFC 8762 4.6 has a reflector fill shorter packets of TWAMP Light
senders up with zeros.  That would make an answer of 44 bytes out of one byte, so
shorter packets are dropped.
"""

from __future__ import annotations

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
from connpool.interfaces import IDatagramResponder

__all__ = ["Stamp", "StampWire", "fromNTP", "toNTP"]

PLAIN_BYTES = 44
AUTHENTICATED_BYTES = 112
_SIGNED_BYTES = 96

_EPOCH = 2_208_988_800  # 1970 in seconds since 1900

#: Not synchronised as far as we know, NTP format, within a second: S=0, Z=0,
#: scale 32, multiplier 1 (RFC 4656 4.1.2).
_ERROR = 0x2001

# TLVs: RFC 8972 4
_PADDING, _TIMESTAMPS, _CLASS, _HMAC = 1, 3, 4, 8
_LENGTHS = {_TIMESTAMPS: 4, _CLASS: 4, _HMAC: 16}
_UNRECOGNISED, _MALFORMED, _INTEGRITY = 0x80, 0x40, 0x20

#: In the answer to an answer of ours: the time we wrote, and our error estimate.
_QUOTED = struct.Struct("!28xQH")
_QUOTED_SIGNED = struct.Struct("!64xQH")
#: Nanoseconds within which an answer comes back, if it does.
_RECENT_NANOSECONDS = 60_000_000_000

#: sequence, time, error, SSID | received | sender's sequence, time, error | TTL
_ANSWER = struct.Struct("!IQHHQIQH2xB3x")
_ANSWER_SIGNED = struct.Struct("!I12xQHH4xQ8xI12xQH6xB15x")


def toNTP(nanoseconds: int) -> int:
    """
    @param nanoseconds: since the epoch.
    @return: the 64-bit NTP timestamp (RFC 5905 6).
    """
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return ((seconds + _EPOCH) & 0xFFFFFFFF) << 32 | (rest << 32) // 1_000_000_000


def fromNTP(stamp: int) -> int:
    """
    @return: nanoseconds since the epoch, for times from 1970 to 2106.
    """
    seconds = ((stamp >> 32) - _EPOCH) & 0xFFFFFFFF
    return seconds * 1_000_000_000 + -(-(stamp & 0xFFFFFFFF) * 1_000_000_000 >> 32)


def _digest(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")[:16]


@attrs.define
class _Session:
    """
    The last answer's number, and the sender's highest with its time.
    """

    count: int = -1
    number: int = -1
    stamp: int = 0


@implementer(IDatagramResponder)
class Stamp:
    """
    A Session-Reflector.

    @param key: L{None} for unauthenticated mode.
    @param stateful: number the answers of each session from 0, so that a sender
        can tell in which direction datagrams are lost; otherwise the sender's
        number comes back.  L{SESSIONS} sessions are remembered; one begins anew
        when the sender's number falls back while its clock goes on.
    """

    SESSIONS = 1024
    excess = 0
    wants = frozenset({"time", "tos", "ttl"})
    #: Routers send from here too; an answer that comes back is known.
    symmetricPorts = frozenset({862})

    def __init__(self, key: bytes | None = None, *, stateful: bool = False) -> None:
        self._key = key
        self._stateful = stateful
        self._sessions: SessionTable[_Session] = SessionTable(self.SESSIONS)
        self.refused: Counter[str] = Counter()

    def respond(self, data: bytes, info: DatagramInfo) -> bytes | None:
        key = self._key
        least = PLAIN_BYTES if key is None else AUTHENTICATED_BYTES
        if len(data) < least:
            self.refused["stamp-short"] += 1
            return None
        if key is None:
            number, stamp, error, ssid = struct.unpack_from("!IQHH", data)
        else:
            number, stamp, error, ssid = struct.unpack_from("!I12xQHH", data)
            if not hmac.compare_digest(
                _digest(key, data[:_SIGNED_BYTES]), data[_SIGNED_BYTES:AUTHENTICATED_BYTES]
            ):
                self.refused["stamp-hmac"] += 1
                return None
        quoted, quotedError = (_QUOTED if key is None else _QUOTED_SIGNED).unpack_from(data)
        if quotedError == _ERROR and 0 <= time.time_ns() - fromNTP(quoted) < _RECENT_NANOSECONDS:
            self.refused["stamp-answer"] += 1
            return None
        count = self._count(info, ssid, number, stamp) if self._stateful else number
        values = (ssid, toNTP(info.receivedAt), number, stamp, error, info.ttl or 0)
        extensions = self._extensions(data, least, struct.pack("!I", count), info)
        layout = _ANSWER if key is None else _ANSWER_SIGNED
        answer = layout.pack(count, toNTP(time.time_ns()), _ERROR, *values)
        if key is not None:
            answer += _digest(key, answer)
        return answer + extensions

    def _count(self, info: DatagramInfo, ssid: int, number: int, stamp: int) -> int:
        """
        @return: the number of the next answer of a session.
        """
        key = ssid.to_bytes(2, "big") + sourceOf(info)
        session = self._sessions.get(info, key)
        if session is None or (number <= session.number and stamp > session.stamp):
            session = _Session()
            self._sessions.put(info, key, session)
        if number >= session.number:
            session.number, session.stamp = number, stamp
        session.count += 1
        return session.count & 0xFFFFFFFF

    def _extensions(self, data: bytes, start: int, number: bytes, info: DatagramInfo) -> bytes:
        """
        The TLVs, with flags and values as a reflector sets them.

        @param number: the sequence number of the answer.
        """
        if not any(data[start:]):
            return data[start:]  # padding of senders older than RFC 8972
        tlvs = _parse(data, start)
        integrity = self._integrity(data, start, tlvs)
        answer = bytearray(data[start:])
        for at, kind, length, whole in tlvs:
            flags = 0 if integrity else _INTEGRITY
            if not whole or _LENGTHS.get(kind, length) != length:
                flags |= _MALFORMED
            elif kind not in {_PADDING, *_LENGTHS} or (kind == _HMAC and self._key is None):
                flags |= _UNRECOGNISED
            answer[at - start] = flags
            if flags:
                continue
            value = at - start + 4
            if kind == _TIMESTAMPS:
                # free-running local clock, time taken in software; in and out
                answer[value : value + 4] = b"\x05\x02\x05\x02"
            elif kind == _CLASS:
                # received DSCP and ECN; 1: we do not set the DSCP that was asked for
                wish = data[at + 4] & 0xFC
                tos = info.tos or 0
                bits = wish << 8 | (tos >> 2) << 4 | (tos & 3) << 2 | 1
                answer[value : value + 2] = bits.to_bytes(2, "big")
            elif kind == _HMAC and self._key is not None:
                signed = number + bytes(answer[: at - start])
                answer[value : value + 16] = _digest(self._key, signed)
        return bytes(answer)

    def _integrity(self, data: bytes, start: int, tlvs: list[tuple[int, int, int, bool]]) -> bool:
        """
        Check that the TLVs are as the sender wrote them: RFC 8972 4.8.  The HMAC TLV
        signs those before it; only padding may follow.  Padding alone needs none.
        """
        if self._key is None or [kind for _, kind, _, _ in tlvs] == [_PADDING]:
            return True
        for i, (at, kind, length, whole) in enumerate(tlvs):
            if kind == _HMAC:
                expected = _digest(self._key, data[:4] + data[start:at])
                return (
                    whole
                    and length == 16
                    and all(later[1] == _PADDING for later in tlvs[i + 1 :])
                    and hmac.compare_digest(expected, data[at + 4 : at + 20])
                )
        return False


def _parse(data: bytes, start: int) -> list[tuple[int, int, int, bool]]:
    """
    @return: for each TLV where it begins, its type and length, and whether all
        of it is there.
    """
    tlvs = []
    at = start
    while at + 4 <= len(data):
        kind = data[at + 1]
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        whole = at + 4 + length <= len(data)
        tlvs.append((at, kind, length, whole))
        if not whole:
            break
        at += 4 + length
    return tlvs


class StampWire(Wire):
    """
    The prober's side: a Session-Sender, authenticated if it has a key; bytes over
    its packet are an Extra Padding TLV, or zeros where that does not fit.
    """

    minimum = PLAIN_BYTES
    signedMinimum = AUTHENTICATED_BYTES

    def __init__(self, size: int, key: bytes | None = None) -> None:
        super().__init__(size, key)
        self._ssid = int.from_bytes(os.urandom(2), "big")
        more = size - (PLAIN_BYTES if key is None else AUTHENTICATED_BYTES)
        self._rest = bytes(more)
        if more >= 4:
            self._rest = struct.pack("!BBH", _UNRECOGNISED, _PADDING, more - 4) + bytes(more - 4)
        self._stateful = False

    def request(self, number: int) -> bytes:
        stamp = toNTP(time.time_ns())
        number &= 0xFFFFFFFF
        if self._key is None:
            packet = struct.pack("!IQHH28x", number, stamp, _ERROR, self._ssid)
        else:
            packet = struct.pack("!I12xQHH68x", number, stamp, _ERROR, self._ssid)
            packet += _digest(self._key, packet)
        return packet + self._rest

    def reply(self, data: bytes) -> Reply | None:
        if len(data) != self.size:
            return None
        if self._key is None:
            layout = _ANSWER
        else:
            layout = _ANSWER_SIGNED
            digest = data[_SIGNED_BYTES:AUTHENTICATED_BYTES]
            if not hmac.compare_digest(_digest(self._key, data[:_SIGNED_BYTES]), digest):
                return None
        count, sent, _, ssid, received, number, _, _, _ = layout.unpack_from(data)
        if ssid != self._ssid:
            return None
        # a stateless reflector only repeats our number, which counts nothing
        self._stateful = self._stateful or count != number
        return Reply(
            number,
            fromNTP(received),
            fromNTP(sent),
            count + 1 if self._stateful else None,
        )
