"""
Path MTU: the largest datagram that gets there uncut.
"""

from __future__ import annotations

from typing import Any

import attrs

from connpool.datagram.prober import MAX_SIZE_BYTES, leastSize
from connpool.datagram.tcpprober import makeProber
from connpool.errors import ProbeFailed

__all__ = ["SweepReport", "sweep"]

#: Seconds that an answer may take longer than four times the slowest before it.
_SLACK_SECONDS = 0.2


@attrs.frozen
class SweepReport:
    """
    @ivar largest: UDP payload bytes of the largest datagram that came back.
    @ivar mtu: the same with the UDP and IP headers.
    @ivar tried: each size, and whether it came back.
    """

    target: str
    largest: int
    mtu: int
    tried: tuple[tuple[int, bool], ...]


async def sweep(
    reactor: Any,
    host: str,
    port: int,
    *,
    protocol: str = "echo",
    timeout: float = 2.0,
    tries: int = 3,
    **options: Any,
) -> SweepReport:
    """
    Search by halves, with fragmenting forbidden on the way there.  The way back
    may fragment: a narrower one does not show.

    @param timeout: seconds to wait for the smallest size; then, as long as the
        answers that came suggest, and no longer than this.
    @param tries: datagrams of each size; one that comes back is enough.
    @param options: C{key}, C{source} and C{marking}, as L{Prober
        <connpool.datagram.Prober>} takes them.
    @raise ProbeFailed: not even the smallest comes back.
    """
    tried: dict[int, bool] = {}
    target = ""
    slowest: float | None = None

    async def passes(size: int) -> bool:
        nonlocal target, slowest
        wait = timeout if slowest is None else min(timeout, 4 * slowest + _SLACK_SECONDS)
        prober = makeProber(
            reactor,
            host,
            port,
            protocol=protocol,
            count=tries,
            interval=wait / tries / 2,
            size=size,
            timeout=wait,
            dontFragment=True,
            **options,
        )
        report = await prober.start()
        target = report.target
        if report.rtt is not None:
            slowest = max(slowest or 0.0, report.rtt.max)
        tried[size] = report.received > 0
        return tried[size]

    low, high = leastSize(protocol, signed=options.get("key") is not None), MAX_SIZE_BYTES
    if not await passes(low):
        raise ProbeFailed(f"{target}: nothing comes back, not even {low} bytes")
    if await passes(high):
        low = high
    while high - low > 1:
        middle = (low + high) // 2
        if await passes(middle):
            low = middle
        else:
            high = middle
    headers = 48 if ":" in host else 28
    return SweepReport(target, low, low + headers, tuple(sorted(tried.items())))
