"""
TCP connections by state: the kernel's table read, counted and explained.  Pure.

C{/proc/net/tcp} and C{tcp6} are text, a line for each socket of the network
namespace (Documentation/networking/proc_net_tcp.rst of Linux); what other
systems have comes from psutil.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Collection, Iterable, Iterator
from enum import Enum
from itertools import islice
from typing import Any, ClassVar

import attrs

from connpool.addresses import joinHostPort

__all__ = [
    "Socket",
    "State",
    "StateCounts",
    "countStates",
    "parseProcTable",
    "socketsOf",
]


class State(Enum):
    """
    The states of RFC 9293 section 3.3.2, with the kernel's number, what the
    state means, and what it says when there are many.
    """

    LISTEN = (10, "waits for connections", "")
    SYN_SENT = (
        2,
        "asked for a connection, no answer yet",
        "the other side drops what comes: a firewall, or its accept queue is full",
    )
    SYN_RECV = (
        3,
        "answered a request, the last step of the handshake is missing",
        "a SYN flood, or answers that get lost on the way back",
    )
    ESTABLISHED = (1, "open", "")
    FIN_WAIT1 = (
        4,
        "closed here, and the other side has not confirmed it",
        "the other side is gone, or reads nothing: its window is full",
    )
    FIN_WAIT2 = (
        5,
        "closed here and confirmed; the other side still sends, or forgot to close",
        "the other side's programs do not close",
    )
    CLOSE_WAIT = (
        8,
        "the other side closed, the program here has not",
        "the program forgot to close: a leak",
    )
    CLOSING = (11, "both sides closed at once, waiting for the confirmation", "")
    LAST_ACK = (
        9,
        "the other side closed first, then this one; waiting for the confirmation",
        "the other side is gone, or reads nothing: its window is full",
    )
    TIME_WAIT = (
        6,
        "over; this side closed first and keeps the ports for a minute",
        "many short connections that this side closes: keep them open, a pool does",
    )
    CLOSE = (7, "not connected", "")

    def __init__(self, number: int, meaning: str, surplus: str) -> None:
        self.number = number
        self.meaning = meaning
        self.surplus = surplus


_BY_NUMBER = {state.number: state for state in State}
#: A request socket of newer kernels (TCP_NEW_SYN_RECV).
_BY_NUMBER[12] = State.SYN_RECV

#: In these a SYN or FIN is in the queue, which counts as a byte.
_SIGN_SENT = {State.SYN_SENT, State.FIN_WAIT1, State.CLOSING, State.LAST_ACK}
_SIGN_CAME = {State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK}

_BY_PSUTIL_NAME = {state.name: state for state in State}


@attrs.frozen
class Socket:
    """
    One side of a connection.

    @ivar localIp: canonical text; an IPv4-mapped address as IPv4.
    @ivar sendQueue: bytes sent and not confirmed, or not sent yet; L{None}
        where the system does not say.
    @ivar receiveQueue: bytes received that the program has not read; of a
        listening socket, connections it has not accepted.
    @ivar inode: the kernel's number of the socket; 0 for one that no program has
        open, and where the system does not say.
    """

    state: State
    localIp: str
    localPort: int
    remoteIp: str
    remotePort: int
    sendQueue: int | None = None
    receiveQueue: int | None = None
    inode: int = 0

    @property
    def local(self) -> str:
        """
        C{ip:port} here.
        """
        return joinHostPort(self.localIp, self.localPort)

    @property
    def remote(self) -> str:
        """
        C{ip:port} there.
        """
        return joinHostPort(self.remoteIp, self.remotePort)


def _ip(text: str) -> str:
    """
    The kernel prints 32-bit words of the address as native numbers.
    """
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(packed) == 16 and packed.startswith(bytes(10) + b"\xff\xff"):
        packed = packed[12:]
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def parseProcTable(lines: Iterable[str], ports: Collection[int] | None = None) -> Iterator[Socket]:
    """
    @param lines: of C{/proc/net/tcp} or C{tcp6}, from the first one on.  Those
        that are not of its form are skipped: the table changes while it is read.
    @param ports: local ports; other sockets are passed over, which is quick.
        L{None} for all.
    """
    wanted = None if ports is None else {f"{port:04X}" for port in ports}
    for line in islice(lines, 1, None):
        words = line.split(maxsplit=10)
        try:
            localIp, localPort = words[1].split(":")
            if wanted is not None and localPort not in wanted:
                continue
            remoteIp, remotePort = words[2].split(":")
            state = _BY_NUMBER[int(words[3], 16)]
            sendQueue, receiveQueue = words[4].split(":")
            yield Socket(
                state,
                _ip(localIp),
                int(localPort, 16),
                _ip(remoteIp),
                int(remotePort, 16),
                max(int(sendQueue, 16) - (state in _SIGN_SENT), 0),
                max(int(receiveQueue, 16) - (state in _SIGN_CAME), 0),
                int(words[9]) if len(words) > 9 else 0,
            )
        except (IndexError, KeyError, ValueError, struct.error):
            continue


def fromPsutil(connections: Iterable[Any]) -> Iterator[Socket]:
    """
    @param connections: as C{psutil.net_connections("tcp")} returns them.
    """
    for each in connections:
        state = _BY_PSUTIL_NAME.get(each.status.replace("SYN_RECEIVED", "SYN_RECV"))
        if state is None:
            continue
        remote = each.raddr or ("", 0)
        yield Socket(state, each.laddr[0], each.laddr[1], remote[0], remote[1])


def socketsOf(
    sockets: Iterable[Socket], ports: Collection[int]
) -> tuple[list[Socket], list[Socket]]:
    """
    @return: those whose local port is one of C{ports}, and those whose remote
        port is: the other ends, where clients run on this machine.
    """
    here, there = [], []
    for each in sockets:
        if each.localPort in ports:
            here.append(each)
        elif each.remotePort in ports:
            there.append(each)
    return here, there


@attrs.frozen
class StateCounts:
    """
    Sockets by state, and the bytes and connections that wait in them.

    @ivar listen: sockets that wait for connections.
    @ivar synSent: connections asked for and not answered yet; many: a firewall drops them.
    @ivar synRecv: handshakes whose last step is missing; many: a SYN flood.
    @ivar established: open connections.
    @ivar finWait1: closed here, not yet confirmed; many: the other side reads nothing.
    @ivar finWait2: closed here only; many: the other side forgets to close.
    @ivar closeWait: closed by the other side only; many: the program here forgot to close.
    @ivar closing: closed by both sides at once.
    @ivar lastAck: closed by both, the other side first.
    @ivar timeWait: over, ports kept for a minute; many: short connections closed here.
    @ivar sendQueueBytes: bytes sent and not confirmed, or not sent yet.
    @ivar receiveQueueBytes: bytes that programs here have not read.
    @ivar acceptQueue: connections that no program has accepted yet.
    """

    GAUGES: ClassVar[frozenset[str]]

    listen: int = 0
    synSent: int = 0
    synRecv: int = 0
    established: int = 0
    finWait1: int = 0
    finWait2: int = 0
    closeWait: int = 0
    closing: int = 0
    lastAck: int = 0
    timeWait: int = 0
    sendQueueBytes: int = 0
    receiveQueueBytes: int = 0
    acceptQueue: int = 0

    def of(self, state: State) -> int:
        """
        The count of one state.
        """
        return int(getattr(self, _FIELDS.get(state, ""), 0))


StateCounts.GAUGES = frozenset(field.name for field in attrs.fields(StateCounts))


def _fieldName(state: State) -> str:
    first, *rest = state.name.lower().split("_")
    return sys.intern(first + "".join(map(str.capitalize, rest)))


_FIELDS: dict[State, str] = {
    state: _fieldName(state) for state in State if state is not State.CLOSE
}


def countStates(sockets: Iterable[Socket]) -> StateCounts:
    """
    Count.
    """
    counts = dict.fromkeys(StateCounts.GAUGES, 0)
    for each in sockets:
        if each.state is State.CLOSE:
            continue
        counts[_FIELDS[each.state]] += 1
        if each.state is State.LISTEN:
            counts["acceptQueue"] += each.receiveQueue or 0
        else:
            counts["sendQueueBytes"] += each.sendQueue or 0
            counts["receiveQueueBytes"] += each.receiveQueue or 0
    return StateCounts(**counts)
