"""
Services that keep measuring paths, and their figures.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import attrs
from twisted.application.service import MultiService, Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from zope.interface import implementer

from connpool.addresses import resolveTarget
from connpool.datagram import Histogram, Report, Sample, makeProber
from connpool.errors import ConnpoolError
from connpool.interfaces import IReloadable, IStatsSource
from connpool.logonce import LogOnce
from connpool.services.probetargets import OTHERS, Target, asTarget

__all__ = ["MOST_EXPORTED", "ProbeService", "ProbeStats", "Rest", "UDPProbe"]

#: Targets whose figures are exported one by one; those of the rest are summed.
MOST_EXPORTED = 1000

#: Seconds after which a path that could not be measured is tried again, at most.
_RETRY_SECONDS = 10.0

#: Reasons that errors are counted under; every other one is C{other}.
_REASONS = frozenset(
    {"EACCES", "EADDRNOTAVAIL", "EAGAIN", "ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "EINVAL"}
    | {"EMSGSIZE", "ENETDOWN", "ENETUNREACH", "ENOBUFS", "ENODEV", "EPERM", "EPROTO", "ETIMEDOUT"}
    | {"closed", "no-connection", "lookup-failed", "probe-failed", "bad-address"}
)


@attrs.frozen(kw_only=True)
class ProbeStats:
    """
    Counters since the start, and the figures of the last whole round.

    @ivar sent: datagrams whose fate is known, those not taken by the system included.
    @ivar received: answers in time.
    @ivar lost: without an answer in time, or not sent.
    @ivar unsent: of the lost, those that could not be sent.
    @ivar duplicates: second answers.
    @ivar reordered: answers overtaken by a later one.
    @ivar late: answers after the timeout.
    @ivar ignored: datagrams that were no answers.
    @ivar failures: rounds that could not be measured at all; their datagrams are lost.
    @ivar errors: errors on sending, ICMP messages and failed rounds, by reason.
    @ivar roundTrips: round trips since the start; absent until something came back.
    @ivar up: whether anything came back in the last round, or so far in this one;
        absent until the first one ends.
    @ivar roundSent: datagrams of the last round; absent if it could not be measured.
    @ivar roundLost: of these, lost.
    @ivar rttMin: shortest round trip of the last round; absent if nothing came back,
        as are those below.
    @ivar rttMean: mean round trip.
    @ivar rttMax: longest round trip.
    @ivar rttP50: half of the round trips were not longer.
    @ivar rttP95: 95 per cent were not longer; absent for rounds with fewer than 20
        answers.
    @ivar rttP99: 99 per cent were not longer; absent for rounds with fewer than 100
        answers.
    @ivar jitter: RFC 3550, of the last round.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset(
        {"rttMin", "rttMean", "rttMax", "rttP50", "rttP95", "rttP99", "jitter"}
        | {"roundSent", "roundLost"}
    )

    sent: int = 0
    received: int = 0
    lost: int = 0
    unsent: int = 0
    duplicates: int = 0
    reordered: int = 0
    late: int = 0
    ignored: int = 0
    failures: int = 0
    errors: dict[str, int] = attrs.Factory(dict)
    roundTrips: Histogram | None = None
    up: bool | None = None
    roundSent: int | None = None
    roundLost: int | None = None
    rttMin: float | None = None
    rttMean: float | None = None
    rttMax: float | None = None
    rttP50: float | None = None
    rttP95: float | None = None
    rttP99: float | None = None
    jitter: float | None = None


@attrs.define
class Counts:
    """
    The counters of L{ProbeStats}, while they grow.
    """

    totals: Counter[str] = attrs.Factory(Counter)
    errors: Counter[str] = attrs.Factory(Counter)
    rtt: Histogram = attrs.Factory(Histogram)

    def sample(self, sample: Sample) -> None:
        """
        Count one sample.
        """
        if sample.rtt is not None and sample.status == "received":
            self.totals["sent"] += 1
            self.totals["received"] += 1
            self.rtt.add(sample.rtt)
        elif sample.status in {"lost", "unsent"}:
            self.totals["sent"] += 1
            self.totals["lost"] += 1
            self.totals["unsent"] += sample.status == "unsent"
        else:
            self.totals["late" if sample.status == "late" else "duplicates"] += 1

    def failed(self, missed: int, reason: str) -> None:
        """
        Count a round that could not be measured.

        @param missed: datagrams that were due in it.
        """
        self.totals.update(sent=missed, lost=missed, unsent=missed, failures=1)
        self.error(reason, 1)

    def error(self, reason: str, count: int) -> None:
        """
        Count errors.
        """
        self.errors[reason if reason in _REASONS else "other"] += count

    def stats(self, **more: Any) -> ProbeStats:
        """
        @param more: fields that are not counters.
        """
        totals: dict[str, Any] = dict(self.totals)
        trips = self.rtt.copy() if self.totals["received"] else None
        return ProbeStats(**totals, errors=dict(self.errors), roundTrips=trips, **more)


class Probe(Service):
    """
    Measures one path, round after round.

    @ivar counts: its counters.

    @param counts: to go on with: those of a former probe of the same name, or ones
        that several probes share.
    @param phase: seconds after the start at which the first round begins.
    @param clock: monotonic seconds.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        target: Target,
        *,
        counts: Counts | None = None,
        phase: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name: str = target.name
        self.target = target
        self.counts = counts or Counts()
        self._reactor = reactor
        self._clock = clock
        self._phase = phase
        self._count = max(1, round(target.round / target.interval))
        self._last: Report | None = None
        self._up: bool | None = None
        self._running: Deferred[None] | None = None
        self._pause: IDelayedCall | None = None
        self._trouble = LogOnce(self._warn)

    def startService(self) -> None:
        super().startService()
        if self._phase:
            self._pause = self._reactor.callLater(self._phase, self._begin)
        else:
            self._begin()

    def _begin(self) -> None:
        self._pause = None
        self._running = Deferred.fromCoroutine(self._oneRound())

    async def _oneRound(self) -> None:
        """
        Measure, and begin the next round when this one was to end, however soon
        it did: the last answer may be there at once, or nothing be measured.
        """
        began = self._clock()
        ends = began + self._count * self.target.interval
        try:
            report = await self._measure()
        except CancelledError:
            return  # stopped
        except Exception as e:
            ends = max(self._clock(), min(ends, self._clock() + _RETRY_SECONDS))
            # an outage is loss: these were due, and went nowhere
            missed = max(1, round((ends - began) / self.target.interval))
            self.counts.failed(missed, getattr(e, "code", "other"))
            self._up, self._last = False, None
            if isinstance(e, ConnpoolError):
                self._trouble.met(str(e))
            else:
                self._log.failure("{name}: probing failed", name=self.name)
        else:
            # its points are not needed any more
            self._up, self._last = report.received > 0, attrs.evolve(report, points=())
            self._tell(report)
        if self.running:
            left = max(ends - self._clock(), 0.0)
            self._pause = self._reactor.callLater(left, self._begin)

    async def _measure(self) -> Report:
        target = self.target
        host, port = await resolveTarget(
            self._reactor,
            target.transport,
            target.address,
            family=target.family or _familyOf(target.source),
            zone=target.marking.interface,
        )
        prober = makeProber(
            self._reactor,
            host,
            port,
            protocol=target.protocol,
            count=self._count,
            interval=target.interval,
            size=target.size,
            timeout=target.timeout,
            key=target.key,
            source=target.source,
            marking=target.marking,
            onSample=self._sample,
        )
        try:
            return await prober.start()
        finally:
            samples = prober.samples
            self.counts.totals.update(reordered=samples.reordered, ignored=samples.ignored)
            for reason, count in prober.allErrors().items():
                self.counts.error(reason, count)

    def _sample(self, sample: Sample) -> None:
        self.counts.sample(sample)
        if sample.status == "received":
            self._up = True

    def _warn(self, text: str) -> None:
        self._log.warn("{name}: {why}", name=self.name, why=text)

    def _tell(self, report: Report) -> None:
        """
        Log when answers end and begin again.
        """
        if not report.received:
            self._trouble.met("nothing comes back")
        elif self._trouble.over():
            self._log.info("{name}: answers again", name=self.name)

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
        @return: counters as of now, and the figures of the last whole round.
        """
        more: dict[str, Any] = {"up": self._up}
        last = self._last
        if last is not None:
            more.update(roundSent=last.sent, roundLost=last.lost, jitter=last.jitter)
            rtt = last.rtt
            if rtt is not None:
                names = ("min", "mean", "max", "p50", "p95", "p99")
                more |= {f"rtt{name.capitalize()}": getattr(rtt, name) for name in names}
        return self.counts.stats(**more)


def _familyOf(source: str) -> int:
    if not source:
        return 0
    return 6 if ":" in source else 4


@implementer(IStatsSource)
class ProbeService(Probe):
    """
    A probe whose figures are exported, and logged for each round.
    """

    kind = "probe"

    def _tell(self, report: Report) -> None:
        super()._tell(report)
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


@implementer(IStatsSource)
class Rest(MultiService):
    """
    The probes beyond those that are exported, which share their counters.

    @ivar counts: of all of them, also of those that are gone.
    """

    kind = "probe"

    def __init__(self) -> None:
        super().__init__()
        self.name: str = OTHERS
        self.counts = Counts()

    def stats(self) -> ProbeStats:
        """
        @return: the sums.
        """
        return self.counts.stats()


@implementer(IReloadable)
class UDPProbe(MultiService):
    """
    Probes of a list of targets, which may change.

    @param targets: at first, also as C{HOST:PORT}; their names differ.
    @param reread: gives the targets anew; raises L{ValueError} for a mistake.
    @param exported: targets that are exported one by one.
    @raise AddressError: for a target that is no C{HOST:PORT}; one line.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        targets: Sequence[Target | str],
        reread: Callable[[], Sequence[Target]] | None = None,
        *,
        exported: int = MOST_EXPORTED,
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._reread = reread
        self._most = exported
        self._rest = Rest()
        self._add([asTarget(each) for each in targets], {})

    def _probes(self) -> Iterable[Probe]:
        yield from (each for each in self if isinstance(each, Probe))
        yield from self._rest

    def reload(self) -> None:
        """
        Read the targets again: those that are new or changed begin, those that are
        gone end, the others go on undisturbed.
        """
        if self._reread is None:
            return
        targets = self._reread()
        wanted = {target.name: target for target in targets}
        kept, former = set(), {}
        for probe in list(self._probes()):
            if wanted.get(probe.name) == probe.target:
                kept.add(probe.name)
                continue
            if probe.name in wanted and probe.parent is self:
                former[probe.name] = probe.counts
            probe.disownServiceParent()
        added = [target for target in targets if target.name not in kept]
        self._add(added, former)
        self._log.info(
            "{all} targets, {added} of them new or changed", all=len(targets), added=len(added)
        )

    def _add(self, targets: Sequence[Target], former: dict[str, Counts]) -> None:
        free = self._most - sum(isinstance(each, Probe) for each in self)
        # those that are exported already stay so
        targets = sorted(targets, key=lambda target: target.name not in former)
        for i, target in enumerate(targets):
            phase = target.interval * i / len(targets)
            if i < free:
                probe: Probe = ProbeService(
                    self._reactor, target, counts=former.get(target.name), phase=phase
                )
                probe.setServiceParent(self)
            else:
                if self._rest.parent is None:
                    self._rest.setServiceParent(self)
                probe = Probe(self._reactor, target, counts=self._rest.counts, phase=phase)
                probe.setServiceParent(self._rest)
