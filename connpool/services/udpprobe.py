"""
C{twistd udpprobe}: keeps measuring paths and exports what it finds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python import usage
from zope.interface import implementer

from connpool.addresses import resolveTCPAddr, resolveUDPAddr, splitHostPort
from connpool.datagram import Prober, Report, makeProber
from connpool.datagram.prober import MAX_SIZE, WIRES
from connpool.errors import AddressError, ConnpoolError
from connpool.interfaces import IStatsSource
from connpool.services.options import asCount, asSeconds
from connpool.services.status import StatusOptions, observed

__all__ = ["Options", "ProbeService", "ProbeStats", "makeService"]

#: Seconds after which what could not be measured is tried again, at most.
_RETRY = 10.0


class Options(StatusOptions):
    pluginName = "udpprobe"
    synopsis = "--to HOST:PORT [--to HOST:PORT…] [options]"
    longdesc = (
        "Sends datagrams at a constant rate for as long as it runs. Each round's "
        "figures go to the log, and with --status to metrics."
    )

    optParameters = [
        ["protocol", "p", "echo", "What the far sides speak: echo, irtt, stamp or tcp."],
        ["interval", "i", "1", "Seconds between sends."],
        ["size", None, "64", "UDP payload in bytes."],
        ["timeout", None, "2", "Seconds after which an answer is late."],
        ["round", None, "60", "Seconds whose figures are put together."],
    ]

    def opt_to(self, target: str) -> None:
        """
        Measure the path to HOST:PORT (repeatable).
        """
        self.collect("to", target)

    def postOptions(self) -> None:
        super().postOptions()
        if not self.get("to"):
            raise usage.UsageError("what shall be measured? give --to HOST:PORT")
        for target in self["to"]:
            try:
                splitHostPort(target)
            except AddressError as e:
                raise usage.UsageError(f"--to: {e}") from None
            if self["to"].count(target) > 1:
                raise usage.UsageError(f"--to: {target} is named twice")
        for name in ("interval", "timeout", "round"):
            self.convert(name, asSeconds)
        self.choice("protocol", list(WIRES))
        size = self.convert("size", asCount)
        least = WIRES[self["protocol"]].minimum
        if not least <= size <= MAX_SIZE:
            raise usage.UsageError(f"--size: {self['protocol']} takes {least} to {MAX_SIZE} bytes")


@attrs.frozen
class ProbeStats:
    """
    Counters since the start, and the figures of the last whole round.

    @ivar sent: datagrams sent.
    @ivar received: answers in time.
    @ivar lost: without an answer in time.
    @ivar duplicates: second answers.
    @ivar reordered: answers overtaken by a later one.
    @ivar late: answers after the timeout.
    @ivar failures: rounds that could not be measured at all.
    @ivar up: whether anything came back in the last round.
    @ivar rttMin: shortest round trip of the last round.
    @ivar rttMean: mean round trip.
    @ivar rttMax: longest round trip.
    @ivar rttP50: half of the round trips were not longer.
    @ivar rttP95: 95 per cent were not longer; 0 for rounds with too few answers.
    @ivar rttP99: 99 per cent were not longer; 0 for rounds with too few answers.
    @ivar jitter: RFC 3550, of the last round.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset(
        {"rttMin", "rttMean", "rttMax", "rttP50", "rttP95", "rttP99", "jitter"}
    )

    sent: int = 0
    received: int = 0
    lost: int = 0
    duplicates: int = 0
    reordered: int = 0
    late: int = 0
    failures: int = 0
    up: bool = False
    rttMin: float = 0.0
    rttMean: float = 0.0
    rttMax: float = 0.0
    rttP50: float = 0.0
    rttP95: float = 0.0
    rttP99: float = 0.0
    jitter: float = 0.0

    def after(self, report: Report) -> ProbeStats:
        """
        @return: with one more round.
        """
        rtt = report.rtt
        return ProbeStats(
            self.sent + report.sent,
            self.received + report.received,
            self.lost + report.lost,
            self.duplicates + report.duplicates,
            self.reordered + report.reordered,
            self.late + report.late,
            self.failures,
            report.received > 0,
            *(
                (rtt.min, rtt.mean, rtt.max, rtt.p50 or 0.0, rtt.p95 or 0.0, rtt.p99 or 0.0)
                if rtt is not None
                else (0.0,) * 6
            ),
            report.jitter or 0.0,
        )


@implementer(IStatsSource)
class ProbeService(Service):
    """
    Measures one path, round after round.

    @param target: C{HOST:PORT}; a name is looked up for each round.
    @param round_: seconds of a round, in which at least one datagram is sent.
    @param clock: monotonic seconds.
    @param options: as L{Prober} takes them.
    """

    kind = "probe"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        target: str,
        *,
        round_: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        self.name: str = target
        self._reactor = reactor
        self._clock = clock
        self._options = options
        self._interval: float = options.get("interval", 1.0)
        self._count = max(1, round(round_ / self._interval))
        self._stats = ProbeStats()
        self._prober: Prober | None = None
        self._running: Deferred[None] | None = None
        self._pause: IDelayedCall | None = None

    def startService(self) -> None:
        super().startService()
        self._begin()

    def _begin(self) -> None:
        self._pause = None
        self._running = Deferred.fromCoroutine(self._oneRound())

    async def _oneRound(self) -> None:
        """
        Measure, and begin the next round when this one was to end, however soon
        it did: the last answer may be there at once, or nothing be measured.
        """
        ends = self._clock() + self._count * self._interval
        try:
            report = await self._measure()
        except CancelledError:
            return  # stopped
        except Exception as e:
            ends = min(ends, self._clock() + _RETRY)
            self._stats = attrs.evolve(self._stats, up=False, failures=self._stats.failures + 1)
            if isinstance(e, ConnpoolError):
                self._log.warn("{name}: {why}", name=self.name, why=str(e))
            else:
                self._log.failure("{name}: probing failed", name=self.name)
        else:
            self._stats = self._stats.after(report)
            self._tell(report)
        if self.running:
            left = max(ends - self._clock(), 0.0)
            self._pause = self._reactor.callLater(left, self._begin)

    async def _measure(self) -> Report:
        resolve = resolveTCPAddr if self._options.get("protocol") == "tcp" else resolveUDPAddr
        network = "tcp" if resolve is resolveTCPAddr else "udp"
        address = await resolve(self._reactor, network, self.name)
        host = f"{address.ip}%{address.zone}" if address.zone else str(address.ip)
        self._prober = makeProber(
            self._reactor, host, address.port, count=self._count, **self._options
        )
        try:
            return await self._prober.start()
        finally:
            self._prober = None

    def _tell(self, report: Report) -> None:
        rtt = report.rtt
        self._log.info(
            "{name}: {sent} sent, {lost} lost, round trip {figures}",
            name=self.name,
            sent=report.sent,
            lost=report.lost,
            figures="none"
            if rtt is None
            else f"min {rtt.min * 1e3:.3f} mean {rtt.mean * 1e3:.3f} max {rtt.max * 1e3:.3f} ms",
        )

    def stopService(self) -> None:
        super().stopService()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._running is not None:
            self._running.cancel()
            self._running = None

    def stats(self) -> ProbeStats:
        """
        @return: with what the round that runs has counted so far.
        """
        if self._prober is None:
            return self._stats
        samples, stats = self._prober.samples, self._stats
        return attrs.evolve(
            stats,
            sent=stats.sent + samples.total,
            received=stats.received + samples.answered,
            duplicates=stats.duplicates + samples.duplicates,
            reordered=stats.reordered + samples.reordered,
            late=stats.late + samples.late,
        )


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    @param options: parsed.
    @param reactor: L{None} for the global one.
    """
    if reactor is None:
        from twisted.internet import reactor
    probes = MultiService()
    for target in options["to"]:
        ProbeService(
            reactor,
            target,
            round_=options["round"],
            protocol=options["protocol"],
            interval=options["interval"],
            size=options["size"],
            timeout=options["timeout"],
        ).setServiceParent(probes)
    return observed(options, probes, reactor)
