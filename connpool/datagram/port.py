"""
A UDP port that can face the internet and runs any L{DatagramProtocol}.

Twisted's own port (26.10) has these faults, each with a test in
C{tests/datagram/test_findings.py}:

  - One ICMP error on a connected port looks like a closed connection to the
    epoll reactor: the port is gone and nobody is told (Twisted #5377, #6287,
    #6467).  We are an L{IHalfCloseableDescriptor}, so the reactor asks
    L{SturdyPort.readConnectionLost} instead; that fetches the error and reads on.
  - Its read loop counts bytes, so datagrams of zero bytes keep it from ever
    returning to the reactor.  Ours counts datagrams and looks at the clock.
  - Send errors are raised into the protocol, a logged traceback each (#2790).
    Ours are counted by name: the sender of a datagram has no way to be told
    that it was lost, so the caller has no use for the special case either.
  - Datagrams over 8192 bytes are cut without a word.
  - On a wildcard address, answers leave from whatever address the kernel picks,
    not from the one that was asked.
  - An IPv6 peer's zone is dropped (#6826).

Known flaws:

  - No multicast membership; use C{getHandle()}.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.internet import defer
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import CannotListenError, InvalidAddressError
from twisted.internet.interfaces import (
    IHalfCloseableDescriptor,
    IListeningPort,
    ILoggingContext,
    IReadDescriptor,
    ISystemHandle,
    IUDPTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.addresses.zones import isLinkLocal, socketAddress, zoneName
from connpool.datagram.info import IP_PKTINFO, SO_TIMESTAMPNS, DatagramInfo

__all__ = ["DATAGRAMS_PER_WAKEUP", "SECONDS_PER_WAKEUP", "SturdyPort", "errnoName"]

DATAGRAMS_PER_WAKEUP = 64
SECONDS_PER_WAKEUP = 0.002

#: More than the largest UDP payload (65,527 bytes over IPv6).
ROOM_BYTES = 65_535

IP_RECVERR = 11
IPV6_RECVERR = 25
IP_MTU_DISCOVER = 10
IPV6_MTU_DISCOVER = 23
PMTUDISC_PROBE = 3
MSG_ERRQUEUE = 0x2000
SO_MEMINFO = 55

_CONTROL_BYTES = 256

#: Errors that a send reports of datagrams before it.
_EARLIER = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EPROTO})

#: Facts that an application may ask the kernel to tell about each datagram.
WANTS = frozenset({"time", "tos", "ttl"})

#: The socket options that ask for them; IP_RECVTTL and IP_RECVTOS have no name in Python 3.11.
_ASK = {
    socket.IPPROTO_IP: {"destination": IP_PKTINFO, "ttl": 12, "tos": 13, "errors": IP_RECVERR},
    socket.IPPROTO_IPV6: {
        "destination": socket.IPV6_RECVPKTINFO,
        "ttl": socket.IPV6_RECVHOPLIMIT,
        "tos": socket.IPV6_RECVTCLASS,
        "errors": IPV6_RECVERR,
    },
}


@implementer(
    IHalfCloseableDescriptor,
    IListeningPort,
    ILoggingContext,
    IReadDescriptor,
    ISystemHandle,
    IUDPTransport,
)
class SturdyPort:
    """
    @ivar info: during C{datagramReceived}, the circumstances of the datagram.
    @ivar received: datagrams read so far.
    @ivar emptied: whether the last wake-up left nothing unread.
    @ivar emptiedAt: when nothing was left unread for the last time, by C{clock}.
    @ivar truncated: datagrams dropped because they did not fit.
    @ivar sendErrors: failed sends by errno name (C{"ENETUNREACH"}).
    @ivar receiveErrors: errors the socket reported by errno name; mostly ICMP.

    @param interface: an address literal, with a zone if it needs one; empty
        for every IPv4 address.
    @param port: 0 lets the system choose.
    @param reusePort: share the port with other processes that say so too.
    @param wants: of C{"time"}, C{"ttl"}, C{"tos"}: what L{DatagramInfo} shall
        say beside the destination.
    @param errors: whether ICMP messages about an unconnected port's datagrams
        are fetched and counted in C{receiveErrors}.
    @param adopt: a bound datagram socket to take over, and close at the end.
    @param room: bytes of the longest datagram that is taken; longer ones count as
        truncated.
    @param clock: monotonic seconds, for the time a wake-up may take.
    """

    _log = Logger()
    _socket: socket.socket | None = None
    _connected: tuple[str, int] | None = None
    _prefix = "SturdyPort"

    def __init__(
        self,
        reactor: Any,
        protocol: Any,
        port: int = 0,
        interface: str = "",
        *,
        reusePort: bool = False,
        wants: frozenset[str] = frozenset(),
        receiveBuffer: int = 1 << 20,
        errors: bool = False,
        adopt: socket.socket | None = None,
        room: int = ROOM_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not wants <= WANTS:
            raise ValueError(f"wants: {sorted(wants - WANTS)} is not among {sorted(WANTS)}")
        self._reactor = reactor
        self.protocol = protocol
        self._asked = (interface, port)
        self._reusePort = reusePort
        self._wants = wants
        self._receiveBuffer = receiveBuffer
        self._errors = errors
        self._adopt = adopt
        self._clock = clock
        self._buffer = bytearray(room)
        self.info = DatagramInfo()
        self._current: Any = None
        self.received = 0
        self.emptied = False
        self.emptiedAt = 0.0
        self.truncated = 0
        self.sendErrors: Counter[str] = Counter()
        self.receiveErrors: Counter[str] = Counter()

    # -- opening and closing ---------------------------------------------------

    def startListening(self) -> None:
        """
        @raise CannotListenError: as L{IListeningPort} says.
        """
        if self._adopt is not None:
            sock, self._adopt = self._adopt, None
        else:
            sock = self._bind()
        sock.setblocking(False)
        self.family = sock.family
        self._askForControl(sock)
        self._socket = sock
        self.emptiedAt = self._clock()
        # the reactor asks for both at every wake-up
        self.fileno = sock.fileno  # type: ignore[method-assign]  # the same answer, one call less
        self._prefix = f"{_logPrefix(self.protocol)} (UDP)"
        self._host = sock.getsockname()
        self._opened(sock)
        self.protocol.makeConnection(self)
        self.startReading()

    def _bind(self) -> socket.socket:
        interface, port = self._asked
        bare = interface.partition("%")[0]
        family = socket.AF_INET6 if ":" in bare else socket.AF_INET
        if interface:
            _checkLiteral(interface)
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                # dual stack is two sockets: lists and answers stay simple
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if self._reusePort:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receiveBuffer)
            sock.bind(socketAddress(interface, port))
        except OSError as e:
            if sock is not None:
                sock.close()
            raise CannotListenError(interface, port, e) from e
        return sock

    def _askForControl(self, sock: socket.socket) -> None:
        host = sock.getsockname()[0]
        wildcard = not any(socket.inet_pton(sock.family, host.partition("%")[0]))
        wants = set(self._wants - {"time"})
        if wildcard:
            wants.add("destination")
        if self._errors:
            wants.add("errors")
        options = [(level, _ASK[level][want]) for level in _levels(sock) for want in wants]
        if "time" in self._wants:
            options.append((socket.SOL_SOCKET, SO_TIMESTAMPNS))
        for where, option in options:
            with contextlib.suppress(OSError):  # not every system has each
                sock.setsockopt(where, option, 1)
        self._wildcard = wildcard
        self._control = _CONTROL_BYTES if wildcard or self._wants else 0

    def _opened(self, sock: socket.socket) -> None:
        """
        For a subclass: the socket is bound, nothing has been read.
        """

    def stopListening(self) -> defer.Deferred[None]:
        self.connectionLost()
        return defer.succeed(None)

    def connectionLost(self, reason: Any = None) -> None:
        """
        Close.  Called twice, it does nothing the second time.
        """
        sock, self._socket = self._socket, None
        if sock is None:
            return
        self._reactor.removeReader(self)
        sock.close()  # from now on its fileno() is -1
        self.protocol.doStop()

    def startReading(self) -> None:
        """
        Read datagrams; they are read from the start.
        """
        self._reactor.addReader(self)

    def stopReading(self) -> None:
        """
        Leave datagrams in the kernel's buffer.
        """
        self._reactor.removeReader(self)

    # -- addresses and descriptors ---------------------------------------------

    def getHost(self) -> IPv4Address | IPv6Address:
        if self.family == socket.AF_INET6:
            host, port, flow, scope = self._host
            return IPv6Address("UDP", host, port, flow, scope)
        return IPv4Address("UDP", *self._host)

    def getHandle(self) -> socket.socket | None:
        return self._socket

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        return self._prefix

    def overflowed(self) -> int:
        """
        @return: datagrams the kernel dropped because the receive buffer was
            full; 0 where the system does not say.
        """
        if self._socket is None:
            return 0
        try:
            memory = self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)
        except OSError:
            return 0
        return int(struct.unpack_from("I", memory, 32)[0]) if len(memory) >= 36 else 0

    # -- reading ---------------------------------------------------------------

    def doRead(self) -> None:
        clock = self._clock
        end = clock() + SECONDS_PER_WAKEUP
        self.emptied = False
        for _ in range(DATAGRAMS_PER_WAKEUP):
            sock = self._socket
            if sock is None:
                return
            try:
                size, control, flags, addr = sock.recvmsg_into([self._buffer], self._control)
            except BlockingIOError:
                self.emptied = True
                self.emptiedAt = clock()
                return
            except InterruptedError:
                continue
            except OSError as e:
                self._pendingError(e.errno)
                continue
            self.received += 1
            if flags & socket.MSG_TRUNC:
                self.truncated += 1
            else:
                self._deliver(bytes(memoryview(self._buffer)[:size]), control, addr)
            if clock() >= end:
                return

    def _deliver(self, data: bytes, control: Any, addr: Any) -> None:
        info = self.info
        info.forget()
        if control:
            info.read(control)
        peer = (_withZone(addr), addr[1])
        self._current = peer
        self._currentAddr = addr
        try:
            self.protocol.datagramReceived(data, peer)
        except Exception:
            self._log.failure("{prefix}: datagramReceived failed", prefix=self.logPrefix())
        finally:
            self._current = None

    def _readError(self, number: int | None) -> None:
        self.receiveErrors[errnoName(number)] += 1
        if number == errno.ECONNREFUSED and self._connected:
            refused = getattr(self.protocol, "connectionRefused", None)
            if refused is not None:
                try:
                    refused()
                except Exception:
                    self._log.failure("{prefix}: connectionRefused failed", prefix=self.logPrefix())

    def readConnectionLost(self, reason: Failure) -> None:
        """
        The reactor saw an error without data: an ICMP message, not the end.
        """
        if self._socket is None:
            return
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.startReading()
        self._pendingError(number)

    def _pendingError(self, number: int | None) -> None:
        """
        Count an error that the socket reported once, C{number}: it is the first
        of its error queue if it has one, with the rest behind it.
        """
        if not self._drainErrors() and number:
            self._readError(number)

    def _drainErrors(self) -> bool:
        """
        Empty the error queue: while something is in it, the reactor is woken.

        @return: whether something was.
        """
        for read in range(DATAGRAMS_PER_WAKEUP):
            if self._socket is None:
                break
            try:
                _, control, _, _ = self._socket.recvmsg(0, _CONTROL_BYTES, MSG_ERRQUEUE)
            except OSError:
                return read > 0
            for level, kind, data in control:
                if (level, kind) in {
                    (socket.IPPROTO_IP, IP_RECVERR),
                    (socket.IPPROTO_IPV6, IPV6_RECVERR),
                }:
                    self._readError(int.from_bytes(data[:4], sys.byteorder))
        return True

    def writeConnectionLost(self, reason: Failure) -> None:
        """
        Never comes: we do not wait for writability.
        """

    # -- writing ---------------------------------------------------------------

    def write(self, packet: bytes, addr: tuple[str, int] | None = None) -> None:
        """
        Do as L{send}, without telling.
        """
        self.send(packet, addr)

    def send(
        self, packet: bytes, addr: tuple[str, int] | None = None, *, again: bool = False
    ) -> str | None:
        """
        Send one datagram.  A failure is counted in L{sendErrors}.

        During C{datagramReceived}, a datagram to the sender leaves from the
        address that was asked.

        @return: the name of the error for which the system did not take it, or
            L{None}.
        @raise InvalidAddressError: for a host name, or an address of the other family.
        """
        sock = self._socket
        if sock is None:
            self.sendErrors["EBADF"] += 1
            return "EBADF"
        try:
            if self._connected is not None:
                if addr not in {None, self._connected}:
                    raise InvalidAddressError(addr, f"this port is connected to {self._connected}")
                sock.send(packet)
            elif addr is not None and addr == self._current:
                sock.sendmsg([packet], self._sourceControl(), 0, self._currentAddr)
            elif addr is None:
                raise InvalidAddressError(addr, "an unconnected port needs an address")
            else:
                self._checkPeer(addr[0])
                sock.sendto(packet, socketAddress(*addr) if "%" in addr[0] else addr)
        except OSError as e:
            if not again and e.errno in _EARLIER:
                # an ICMP message about an earlier datagram; this one was not sent
                if not self._drainErrors() and self._connected is not None:
                    self._readError(e.errno)
                return self.send(packet, addr, again=True)
            name = errnoName(e.errno)
            self.sendErrors[name] += 1
            return name
        return None

    def writeSequence(self, packets: Any, addr: tuple[str, int] | None = None) -> None:
        """
        Send one datagram made of several parts.
        """
        self.write(b"".join(packets), addr)

    def _sourceControl(self) -> list[tuple[int, int, bytes]]:
        """
        The control message that makes an answer leave from the address asked.
        """
        info = self.info
        local = info.local
        if local is None:
            return []
        if len(local) == 4:
            # ifindex 0: routing decides; a request may come in by one interface
            # and its answer leave by another
            return [(socket.IPPROTO_IP, IP_PKTINFO, b"\0\0\0\0" + local + b"\0\0\0\0")]
        data = local + struct.pack("I", info.interface if isLinkLocal(local) else 0)
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, data)]

    def _checkPeer(self, host: str) -> None:
        if host == "<broadcast>" and self.family == socket.AF_INET:
            return
        _checkLiteral(host)
        if (":" in host) != (self.family == socket.AF_INET6):
            raise InvalidAddressError(host, "this port has the other address family")

    def connect(self, host: str, port: int) -> None:
        if self._connected is not None:
            raise RuntimeError("already connected")
        self._checkPeer(host)
        assert self._socket is not None
        self._socket.connect(socketAddress(host, port))
        self._connected = (host, port)

    def setDontFragment(self) -> None:
        """
        Send every datagram whole or not at all, and do not believe what earlier
        ICMP messages said of the path.
        """
        assert self._socket is not None
        six = self.family == socket.AF_INET6
        level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
        option = IPV6_MTU_DISCOVER if six else IP_MTU_DISCOVER
        self._socket.setsockopt(level, option, PMTUDISC_PROBE)

    def setBroadcastAllowed(self, enabled: bool) -> None:
        assert self._socket is not None
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, enabled)

    def getBroadcastAllowed(self) -> bool:
        assert self._socket is not None
        return bool(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST))


def _levels(sock: socket.socket) -> list[int]:
    """
    The protocols that datagrams of C{sock} come by.
    """
    if sock.family == socket.AF_INET:
        return [socket.IPPROTO_IP]
    if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return [socket.IPPROTO_IPV6]
    return [socket.IPPROTO_IPV6, socket.IPPROTO_IP]


def _withZone(addr: Any) -> str:
    """
    The host of a socket's address, with the zone of a link-local one.
    """
    host: str = addr[0]
    if len(addr) == 4 and addr[3]:
        return f"{host}%{zoneName(str(addr[3]))}"
    return host


def _logPrefix(protocol: Any) -> str:
    """
    Ask the protocol for the name that it has in logs.
    """
    if ILoggingContext.providedBy(protocol):
        return str(protocol.logPrefix())
    return type(protocol).__name__


def errnoName(number: int | None) -> str:
    """
    @return: the name of an error number, such as C{ENETUNREACH}.
    """
    return errno.errorcode.get(number or 0, f"E{number}")


def _checkLiteral(host: str) -> None:
    """
    @raise InvalidAddressError: for what is not an address literal.
    """
    bare = host.partition("%")[0]
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in bare else socket.AF_INET, bare)
    except (OSError, ValueError):
        raise InvalidAddressError(host, "not an IPv4 or IPv6 address") from None
