"""
The port that answers: a L{SturdyPort}, a responder, and L{Limits} between them.

Datagrams come in batches where the system can (see L{connpool.datagram.mmsg}).
A batch is judged by source, not by datagram: most batches have one or a few.
If nothing in it is special and the responder only reflects, its answers leave
from the buffers they came in; otherwise each datagram is shown to the responder.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import attrs
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from zope.interface import implementer

from connpool.addresses.zones import isLinkLocal
from connpool.datagram import mmsg
from connpool.datagram.info import IP_PKTINFO, DatagramInfo
from connpool.datagram.limits import OWN_PORTS, Limits, OwnPorts, Source
from connpool.datagram.port import (
    DATAGRAMS_PER_WAKEUP,
    SECONDS_PER_WAKEUP,
    SturdyPort,
    errnoName,
)
from connpool.interfaces import IDatagramResponder, IReflector, IStatsSource

__all__ = ["AnsweringPort", "DatagramStats", "Unwrap"]

#: Takes a datagram and its info out of a proxy's envelope: returns the payload
#: and sets who asks with C{info.asker}; L{None} for what is not to be answered.
Unwrap = Callable[[bytes, DatagramInfo], bytes | None]

#: Datagrams per system call where each is shown to the responder: small, so
#: that the time a wake-up takes is looked at often enough.
_SHOWN_AT_ONCE = 16

#: Where datagrams come one by one, so many are read that way; then a batch looks
#: whether there are several by now.  Their number in a wake-up says nothing: a peer
#: that answers at once sends many, and there is never more than one to read.
_SINGLES = 64


@attrs.frozen
class DatagramStats:
    """
    Counters since the start.

    @ivar received: datagrams read.
    @ivar answered: answers that the kernel took.
    @ivar receivedBytes: UDP payload of what was read.
    @ivar answeredBytes: UDP payload of the answers.
    @ivar refused: datagrams not answered, by reason.
    @ivar overLimit: datagrams of trusted sources answered beyond a rate.
    @ivar overflowed: datagrams the kernel dropped for want of buffer.
    @ivar sendErrors: answers that the kernel did not take, by errno name.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset()

    received: int
    answered: int
    receivedBytes: int
    answeredBytes: int
    refused: dict[str, int]
    overLimit: int
    overflowed: int
    sendErrors: dict[str, int]

    def plus(self, other: DatagramStats) -> DatagramStats:
        """
        @return: the sums.
        """
        return DatagramStats(
            self.received + other.received,
            self.answered + other.answered,
            self.receivedBytes + other.receivedBytes,
            self.answeredBytes + other.answeredBytes,
            dict(Counter(self.refused) + Counter(other.refused)),
            self.overLimit + other.overLimit,
            self.overflowed + other.overflowed,
            dict(Counter(self.sendErrors) + Counter(other.sendErrors)),
        )


NOTHING = DatagramStats(0, 0, 0, 0, {}, 0, 0, {})


class _Answers(DatagramProtocol):
    """
    The protocol that L{SturdyPort} needs; the port itself answers.
    """

    noisy = False

    def __init__(self, port: AnsweringPort) -> None:
        self._port = port

    def logPrefix(self) -> str:
        return self._port.name


@implementer(IStatsSource)
class AnsweringPort(SturdyPort):
    """
    @ivar maxBatch: the most datagrams that one wake-up has read in batches.

    @param responder: provides L{IDatagramResponder}.
    @param limits: may be shared by several ports.
    @param unwrap: for ports behind a proxy, see L{Unwrap}.
    @param batched: whether to read and write in batches where the system can.
    """

    kind = "datagram"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        responder: IDatagramResponder,
        limits: Limits,
        port: int = 0,
        interface: str = "",
        *,
        name: str = "datagram",
        unwrap: Unwrap | None = None,
        ownPorts: OwnPorts = OWN_PORTS,
        batched: bool = True,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        options.setdefault("wants", responder.wants)
        super().__init__(reactor, _Answers(self), port, interface, clock=clock, **options)
        self.name = name
        self.responder = responder
        self.limits = limits
        self._unwrap = unwrap
        self._ownPorts = ownPorts
        self._batched = batched and mmsg.available()
        self._reflects = responder.reflects if IReflector.providedBy(responder) else None
        self._answerAll = "length" in limits.policy.relax
        self._answerBroadcast = "broadcast" in limits.policy.relax
        self._batch: mmsg.Batch | None = None
        self._lastOverflow = 0
        self.answered = self.receivedBytes = self.answeredBytes = 0
        self.refused: Counter[str] = Counter()
        self.maxBatch = 0
        self._failed = False
        self._view = memoryview(self._buffer)
        self._singles = 0

    def _opened(self, sock: socket.socket) -> None:
        port = sock.getsockname()[1]
        self._ownPorts.add(port)
        # responders written before there was such a thing have none
        symmetric = getattr(self.responder, "symmetricPorts", None)
        if symmetric:
            self.limits.exempt({port, *symmetric})
        if self._batched:
            self._batch = mmsg.Batch(sock.family, DATAGRAMS_PER_WAKEUP, bool(self._control))
            self._nameSize = self._batch.nameSize
        #: nothing but the bytes and the sender is needed
        self._plain = not self._control and self._unwrap is None and self._reflects is not None
        self._singles = _SINGLES if self._plain else 0
        #: the destination is all the kernel says, so that answers can go back as they are
        self._onlyDestination = self._wildcard and not self._wants

    def connectionLost(self, reason: Any = None) -> None:
        if self._socket is not None:
            self._lastOverflow = self.overflowed()
            self._ownPorts.remove(self._host[1])
        super().connectionLost(reason)
        self._batch = None

    # -- in batches --------------------------------------------------------------

    def doRead(self) -> None:
        batch = self._batch
        if batch is None:
            super().doRead()
            return
        now = self._clock()
        end = now + SECONDS_PER_WAKEUP
        try:
            left = DATAGRAMS_PER_WAKEUP
            if self._singles:
                read = self._readSingly(min(left, self._singles), now, end)
                self._singles -= read
                if self._singles:
                    return
                left -= read
                now = self._clock()
            self._readBatches(batch, left, now, end)
        except Exception:
            # the reactor would close the port
            self._responderFailed()

    def _readBatches(self, batch: mmsg.Batch, left: int, now: float, end: float) -> None:
        chunk = left if self._reflects is not None else _SHOWN_AT_ONCE
        n = 0
        while left and self._socket is not None and now < end:
            asked = min(chunk, left)
            n = batch.receive(self._socket.fileno(), asked)
            if n <= 0:
                if n not in {-errno.EAGAIN, -errno.EINTR}:
                    self._pendingError(-n)
                break
            left -= n
            self.received += n
            self._take(batch, n, now)
            if n < asked:
                break
            now = self._clock()
        if n == 1 and self._plain:
            self._singles = _SINGLES  # they come one by one
        self.maxBatch = max(self.maxBatch, DATAGRAMS_PER_WAKEUP - left)

    def _readSingly(self, most: int, now: float, end: float) -> int:
        """
        Read datagrams one by one with as little effort as can be: setting up a
        batch for one is more work than all the rest.

        @return: how many were read.
        """
        limits = self.limits
        reflects = self._reflects
        assert reflects is not None
        buffer, sources = self._buffer, limits.sources()
        read = 0
        while read < most and now < end:
            sock = self._socket
            if sock is None:
                break
            try:
                size, addr = sock.recvfrom_into(buffer)
            except BlockingIOError:
                break
            except OSError as e:
                self._pendingError(e.errno)
                break
            if read:
                now = self._clock()
            read += 1
            self.received += 1
            data = self._view[:size].tobytes()
            source = sources.get(addr)
            if source is None or not reflects(data[:1]):
                self._deliver(data, (), addr)
            else:
                self.receivedBytes += size
                if limits.admit(source, 1, now):
                    limits.look(source, data, now)
                    try:
                        sock.sendto(data, addr)
                    except OSError as e:
                        self.sendErrors[errnoName(e.errno)] += 1
                    else:
                        self.answered += 1
                        self.answeredBytes += size
        return read

    def _take(self, batch: mmsg.Batch, n: int, now: float) -> None:
        size = self._nameSize
        senders = batch.senders(n)
        lengths = batch.lengths(n)
        self.receivedBytes += sum(lengths)
        truncated = batch.truncated(n)
        if self._unwrap is not None or truncated:
            indexes = [i for i in range(n) if i not in truncated]
            self.truncated += len(truncated)
            self._show(batch, indexes, senders, lengths, now, admitted=False)
            return
        limits = self.limits
        sources = limits.sources()
        first = senders[:size]
        one = n == 1 or senders == first * n
        if one:
            source = sources.get(first) or self._source(first)
            kept: Sequence[int] = range(limits.admit(source, n, now))
        else:
            names = [senders[i : i + size] for i in range(0, n * size, size)]
            grants = {}
            for name, count in Counter(names).items():
                source = sources.get(name) or self._source(name)
                grants[name] = limits.admit(source, count, now)
            kept = []
            for i, name in enumerate(names):
                if grants[name]:
                    grants[name] -= 1
                    kept.append(i)
        if not kept:
            return
        # one datagram of each batch is looked at for loops; which, is left to chance
        i = kept[self.received % len(kept)]
        if not one:
            source = sources.get(names[i]) or self._source(names[i])
        limits.look(source, batch.payload(i, lengths[i]), now)
        reflects = self._reflects
        if (
            reflects is None
            or (self._control and not (self._onlyDestination and batch.plainDestinations(n)))
            or not reflects(batch.firstBytes(n))
        ):
            self._show(batch, kept, senders, lengths, now, admitted=True)
            return
        batch.reflect(n)
        fd = self._socket.fileno()  # type: ignore[union-attr]  # a datagram came by it
        if len(kept) < n:
            self._sent([lengths[i] for i in kept], batch.sendSome(fd, kept))
            return
        alike = one and n > 1 and lengths.count(lengths[0]) == n
        if alike and batch.sendJoined(fd, n, lengths[0]):
            self._sent(lengths, [])
        else:
            self._sent(lengths, batch.send(fd, n))

    def _source(self, name: bytes) -> Source:
        info = self.info
        info.asker(*self._whose(name))
        return self.limits.source(info.address, info.port, name, info.zone)

    def _whose(self, name: bytes) -> tuple[bytes, int, int]:
        """
        The address, port and zone in a C{sockaddr}.
        """
        port = int.from_bytes(name[2:4], "big")
        if len(name) != 28:
            return name[4:8], port, 0
        return name[8:24], port, int.from_bytes(name[24:28], sys.byteorder)

    def _show(
        self,
        batch: mmsg.Batch,
        indexes: Sequence[int],
        senders: bytes,
        lengths: Sequence[int],
        now: float,
        *,
        admitted: bool,
    ) -> None:
        """
        Show datagrams to the responder one by one, and send its answers.
        """
        size = self._nameSize
        info = self.info
        answered: list[int] = []
        sizes: list[int] = []
        for i in indexes:
            name = senders[i * size : i * size + size]
            info.forget()
            info.sockaddr = name
            info.asker(*self._whose(name))
            if self._control:
                info.read(batch.messages(i))
            answer = self._answer(batch.payload(i, lengths[i]).tobytes(), now, admitted=admitted)
            if answer is not None:
                batch.answer(i, answer, _source(info))
                answered.append(i)
                sizes.append(len(answer))
        if answered and self._socket is not None:
            self._sent(sizes, batch.sendSome(self._socket.fileno(), answered))

    def _sent(self, sizes: Sequence[int], failures: mmsg.Failures) -> None:
        self.answered += len(sizes) - len(failures)
        self.answeredBytes += sum(sizes)
        for place, number in failures:
            self.answeredBytes -= sizes[place]
            self.sendErrors[errnoName(number)] += 1

    # -- one by one --------------------------------------------------------------

    def _deliver(self, data: bytes, control: Any, addr: Any) -> None:
        """
        Answer one datagram; L{SturdyPort} calls this where there are no batches.
        """
        info = self.info
        info.forget()
        self.receivedBytes += len(data)
        self.maxBatch = max(self.maxBatch, 1)
        info.sockaddr = addr
        packed = socket.inet_pton(self.family, addr[0].partition("%")[0])
        info.asker(packed, addr[1], addr[3] if len(addr) == 4 else 0)
        if control:
            info.read(control)
        now = self._clock()
        answer = self._answer(data, now, admitted=False)
        if answer is None or self._socket is None:
            return
        try:
            self._socket.sendmsg([answer], self._sourceControl(), 0, addr)
        except OSError as e:
            self.sendErrors[errnoName(e.errno)] += 1
        else:
            self.answered += 1
            self.answeredBytes += len(answer)

    # -- both --------------------------------------------------------------------

    def _answer(self, data: bytes, now: float, *, admitted: bool) -> bytes | None:
        """
        @param admitted: whether the limits already let this datagram in.
        @return: the answer to send back to the peer that L{info} names.
        """
        info = self.info
        if not (info.unicast or self._answerBroadcast):
            self.refused["broadcast"] += 1
            return None
        original = data
        if self._unwrap is not None:
            unwrapped = self._unwrap(data, info)
            if unwrapped is None:
                self.refused["proxy-header"] += 1
                return None
            data = unwrapped
        limits = self.limits
        name = info.sockaddr if self._unwrap is None else (info.address, info.port)
        source = limits.source(info.address, info.port, name, info.zone)
        if not admitted:
            if not limits.admit(source, 1, now):
                return None
            limits.look(source, data, now)
        try:
            answer = self.responder.respond(data, info)
        except Exception:
            self._responderFailed()
            return None
        if answer is None:
            return None
        if len(answer) > mmsg.ROOM_BYTES:
            self.sendErrors["EMSGSIZE"] += 1
            return None
        longer = len(answer) - len(original)
        if longer > 0 and not (
            self._answerAll or (longer <= self.responder.excess and limits.longer(source, now))
        ):
            self.refused["length"] += 1
            return None
        return answer

    def _responderFailed(self) -> None:
        self.refused["responder-failed"] += 1
        if not self._failed:
            # once: what it fails on can come a hundred thousand times a second
            self._failed = True
            self._log.failure("{name}: the responder failed; said only once", name=self.name)

    def own(self) -> DatagramStats:
        """
        @return: this port's numbers, without those of the limits and the
            responder, which it may share.
        """
        refused = self.refused + Counter(truncated=self.truncated)
        return DatagramStats(
            self.received,
            self.answered,
            self.receivedBytes,
            self.answeredBytes,
            dict(refused),
            0,
            self.overflowed() if self._socket is not None else self._lastOverflow,
            dict(self.sendErrors),
        )

    def stats(self) -> DatagramStats:
        return self.own().plus(shared(self.limits, self.responder))


def shared(limits: Limits, responder: IDatagramResponder) -> DatagramStats:
    """
    @return: the numbers of limits and responder, which several ports may share.
    """
    refused = limits.refused + Counter(responder.refused)
    return attrs.evolve(NOTHING, refused=dict(refused), overLimit=limits.overLimit)


def _source(info: DatagramInfo) -> bytes:
    """
    The control message that makes an answer leave from the address asked.
    """
    local = info.local
    if local is None:
        return b""
    if len(local) == 4:
        return struct.pack("=QIII4s4x4x", 28, socket.IPPROTO_IP, IP_PKTINFO, 0, local)
    interface = info.interface if isLinkLocal(local) else 0
    return struct.pack("=QII16sI4x", 36, socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local, interface)
