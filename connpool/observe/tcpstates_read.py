"""
Reading the kernel's table, off the reactor's thread, and single sockets.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import MultiService, Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from zope.interface import implementer

from connpool.errors import StatesUnavailable
from connpool.interfaces import IStatsSource
from connpool.logonce import LogOnce
from connpool.observe.tcpstates import (
    Socket,
    State,
    StateCounts,
    countStates,
    fromPsutil,
    parseProcTable,
    socketsOf,
)

__all__ = ["TCPInfo", "TCPStates", "findProcesses", "readSockets", "tcpInfo"]

PROC = Path("/proc/self/net")


def readSockets(ports: Collection[int] | None = None, proc: Path = PROC) -> list[Socket]:
    """
    Every TCP socket of this network namespace.  Blocks: tens of milliseconds
    where there are thousands.

    @param ports: sockets with other local ports may be left out.
    @param proc: the directory with C{tcp} and C{tcp6}.  Without it psutil is
        asked, which does not know queues, and may see only this process.
    @raise StatesUnavailable: the system does not say; one line.
    """
    sockets: list[Socket] = []
    tables = 0
    for table in (proc / "tcp", proc / "tcp6"):
        with suppress(FileNotFoundError), table.open(encoding="ascii", errors="replace") as lines:
            sockets += parseProcTable(lines, ports)
            tables += 1
    return sockets if tables else _askPsutil()


def _askPsutil() -> list[Socket]:
    import psutil

    try:
        try:
            return list(fromPsutil(psutil.net_connections("tcp")))
        except psutil.AccessDenied:
            return list(fromPsutil(psutil.Process().net_connections("tcp")))
    except (psutil.Error, OSError) as e:
        raise StatesUnavailable(
            f"this system does not show its TCP sockets ({e}); on Linux, mount /proc"
        ) from None


def findProcesses(proc: Path = Path("/proc")) -> dict[int, str]:
    """
    @return: inode of a socket to C{name/pid} of a program that has it open, as far
        as we may look.  Blocks, longer than L{readSockets}.
    """
    found: dict[int, str] = {}
    for directory in proc.glob("[0-9]*"):
        # it ended, or it is not ours to look into
        with suppress(OSError):
            name = (directory / "comm").read_text(errors="backslashreplace").strip()
            for descriptor in os.scandir(directory / "fd"):
                target = os.readlink(descriptor.path)
                if target.startswith("socket:["):
                    shown = "".join(char if char.isprintable() else "?" for char in name)
                    found[int(target[8:-1])] = f"{shown}/{directory.name}"
    return found


# -- one socket of ours ------------------------------------------------------


@attrs.frozen
class TCPInfo:
    """
    The kernel's knowledge of one of our own sockets (C{TCP_INFO}, Linux).

    @ivar rtt: smoothed round-trip time, seconds.
    @ivar rttVariance: its variance, seconds.
    @ivar retransmits: segments sent again since the connection began.
    @ivar lost: segments now believed lost.
    @ivar unacknowledged: segments sent and not confirmed; of a listening
        socket, connections not accepted yet.
    @ivar selective: segments confirmed out of order; of a listening socket,
        how many connections may wait to be accepted.
    @ivar congestionWindow: segments that may be under way.
    """

    state: State
    rtt: float
    rttVariance: float
    retransmits: int
    lost: int
    unacknowledged: int
    selective: int
    congestionWindow: int

    @classmethod
    def parse(cls, data: bytes) -> TCPInfo:
        """
        @param data: the first 104 bytes of C{struct tcp_info}, which all
            kernels have in common, or more.
        """
        state, *_ = struct.unpack_from("=8B", data)
        words = struct.unpack_from("=24I", data, 8)
        return cls(
            state=next((each for each in State if each.number == state), State.CLOSE),
            rtt=words[15] / 1e6,
            rttVariance=words[16] / 1e6,
            retransmits=words[23],
            lost=words[6],
            unacknowledged=words[4],
            selective=words[5],
            congestionWindow=words[18],
        )


def tcpInfo(transport: Any) -> TCPInfo | None:
    """
    @param transport: a connected TCP transport, one with TLS or a proxy
        header in between, a listening port, or a plain socket.
    @return: L{None} where the system has no such thing, or the socket is gone.
    """
    # not getHandle(), which is the TLS session where there is one
    try:
        own = transport if isinstance(transport, socket.socket) else transport.socket
        return TCPInfo.parse(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104))
    except (AttributeError, OSError, struct.error):
        return None


# -- a process's own listeners -----------------------------------------------


@implementer(IStatsSource)
class _Listener(Service):
    """
    The states of the connections of one listening service.
    """

    kind = "tcp"

    def __init__(self, name: str) -> None:
        self.setName(name)
        self.counts = StateCounts()

    def stats(self) -> StateCounts:
        """
        As of the last look.
        """
        return self.counts


class TCPStates(MultiService):
    """
    Looks at the connections of listening services from time to time.

    Each listening service has a child here, an L{IStatsSource} of kind
    C{tcp} with a L{StateCounts}; one look serves them all.

    @param listeners: name to ports of what listens now; asked at each look.
    @param interval: seconds between looks.
    @param read: the sockets that have one of these local ports, and others if
        that is easier; runs in the reactor's thread pool.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        listeners: Callable[[], dict[str, Collection[int]]],
        interval: float = 5.0,
        read: Callable[[Collection[int]], list[Socket]] = readSockets,
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._listeners = listeners
        self._interval = interval
        self._read = read
        self._unavailable = LogOnce(lambda why: self._log.warn("no TCP states: {why}", why=why))
        self._loop = LoopingCall(self.look)
        self._loop.clock = reactor

    def startService(self) -> None:
        super().startService()
        self._loop.start(self._interval)

    def stopService(self) -> Any:
        if self._loop.running:
            self._loop.stop()
        return super().stopService()

    def look(self) -> Deferred[None]:
        """
        Count now.

        @return: fires when the children have the new counts; never fails.
        """
        pool = self._reactor.getThreadPool()
        looking = deferToThreadPool(self._reactor, pool, self._count, self._listeners())
        return looking.addCallbacks(self._seen, self._failed)

    def _count(self, listeners: dict[str, Collection[int]]) -> dict[str, StateCounts]:
        """
        In the thread: where there are a hundred thousand sockets, only to look
        at each takes as long as a reactor may stand still.
        """
        every = frozenset[int]().union(*listeners.values())
        sockets = self._read(every) if every else []
        return {
            name: countStates(socketsOf(sockets, ports)[0]) for name, ports in listeners.items()
        }

    def _seen(self, found: dict[str, StateCounts]) -> None:
        for name, counts in found.items():
            if name not in self.namedServices:
                _Listener(name).setServiceParent(self)
            child: Any = self.getServiceNamed(name)
            child.counts = counts
        for name in set(self.namedServices) - set(found):
            self.getServiceNamed(name).disownServiceParent()

    def _failed(self, failure: Any) -> None:
        self._seen({})  # better none than old ones
        if failure.check(StatesUnavailable):
            self._unavailable.met(str(failure.value))
        else:
            self._log.failure("cannot read the TCP states", failure)


def portsOf(service: Any) -> frozenset[int]:
    """
    The TCP ports a listening service has open.

    @param service: something with C{getHosts()}.
    """
    return frozenset(
        host.port
        for host in service.getHosts()
        if isinstance(host, IPv4Address | IPv6Address) and host.type == "TCP"
    )
