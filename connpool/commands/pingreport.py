"""
The reports of C{connpool ping}: for people, and as JSON.
"""

from __future__ import annotations

from typing import Any

import attrs

__all__ = ["asJSON", "asLine", "asText"]


def asJSON(name: str, report: Any) -> dict[str, Any]:
    """
    @param name: the target as the user wrote it.
    @return: the report as plain values; times in seconds, without the points.
    """
    fields = attrs.asdict(report, filter=attrs.filters.exclude("points"))
    return {"name": name, **fields, "loss": report.loss}


def _spread(name: str, spread: Any) -> str:
    if spread is None:
        return ""
    parts = [("min", spread.min), ("mean", spread.mean)]
    parts += [("p50", spread.p50), ("p95", spread.p95), ("p99", spread.p99), ("p99.9", spread.p999)]
    parts += [("max", spread.max), ("stddev", spread.stddev)]
    values = "  ".join(f"{word} {value * 1e3:.3f}" for word, value in parts if value is not None)
    return f"{name:10} {values} ms\n"


def _counts(r: Any) -> str:
    if not r.sent:
        return "nothing sent"
    where = "" if r.lostUp is None else f" (there {r.lostUp}, back {r.lostDown})"
    if r.unsent:
        return (
            f"{r.sent} sent, {r.received} received, {r.lost} lost{where} = "
            f"{r.loss * 100:.4g} %, {r.unsent} of them could not be sent"
        )
    return f"{r.sent} sent, {r.received} received, {r.lost} lost{where} = {r.loss * 100:.2f} %"


def _odd(r: Any) -> str:
    odd = {
        "duplicates": r.duplicates,
        "reordered": r.reordered,
        "late": r.late,
        "ignored": r.ignored,
        **r.errors,
    }
    return ", ".join(f"{name} {n}" for name, n in odd.items() if n)


def asLine(name: str, report: Any) -> str:
    """
    @return: the report of one of several targets.
    """
    line = f"{name}  {_counts(report)}"
    if report.rtt is not None:
        rtt = report.rtt
        times = (rtt.min, rtt.p50, rtt.p95, rtt.max)
        words = [
            f"{word} {value * 1e3:.3f}"
            for word, value in zip(("min", "p50", "p95", "max"), times, strict=True)
            if value is not None
        ]
        line += f", rtt {'  '.join(words)} ms"
    odd = _odd(report)
    return f"{line}, {odd}" if odd else line


def asText(report: Any) -> str:
    """
    @return: the report for people.
    """
    r = report
    text = f"\n{r.target} {r.protocol}, {r.size} bytes: {_counts(r)}\n"
    odd = _odd(r)
    if odd:
        text += odd + "\n"
    text += _spread("rtt", r.rtt)
    if r.jitter is not None:
        text += f"{'jitter':10} {r.jitter * 1e3:.3f} ms (RFC 3550)\n"
    text += _spread("ipdv", r.ipdv)
    if r.up is not None:
        note = "" if r.clocksPlausible else "  (the clocks disagree: one-way delays are off by it)"
        text += _spread("there", r.up) + _spread("back", r.down) + _spread("remote", r.remote)
        text += f"{'offset':10} {r.offset * 1e3:.3f} ms{note}\n"
    text += _spread("lateness", r.lateness)
    return text.rstrip("\n")
