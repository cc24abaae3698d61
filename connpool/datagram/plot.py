"""
A report as a picture: round trips over time, losses, and how the round trips spread.

Plain SVG without scripts or fonts of its own, to be pasted into a ticket.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from html import escape

from connpool.datagram.figures import Point, Report

__all__ = ["plot"]

#: From a value to a coordinate.
Scale = Callable[[float], float]

WIDTH = 960
LEFT, RIGHT, TOP, BOTTOM = 70, 760, 24, 300
HISTOGRAM = 790
#: Of a line of text, and of the space under the axis.
LINE, FOOT = 18, 70

#: More points than this are drawn as one line from minimum to maximum a column.
_DOTS = 1500
_BINS = 40

#: Widths of letters, as wide fonts have them: of 15 bold, and of 12.
_BOLD, _PLAIN = 10.8, 7.8

_INK, _FAINT, _DOT, _LOST = "#222", "#ddd", "#2563a8", "#c62828"


def steps(top: float, count: int = 5) -> list[float]:
    """
    @return: round values from 0 up to C{top}, about C{count} of them.
    """
    if top <= 0:
        return [0.0]
    magnitude = 10 ** math.floor(math.log10(top / count))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= top / count)
    return [i * step for i in range(int(top / step + 1e-9) + 1)]


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>'


def _wrapped(parts: list[str], letter: float) -> list[str]:
    """
    Put parts into lines that fit between the margins.

    @param letter: the width of one, on average.
    """
    most = int((WIDTH - 2 * LEFT) / letter)
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}, {part}" if lines[-1] else part
        if len(joined) <= most:
            lines[-1] = joined
        else:
            lines += [part[at : at + most] for at in range(0, len(part), most)]
    return [line for line in lines if line]


def _line(x1: float, y1: float, x2: float, y2: float, color: str, more: str = "") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" {more}/>'
    )


def plot(report: Report) -> str:
    """
    @return: an SVG document.
    """
    answered = [point for point in report.points if point.rtt is not None]
    # some room above, so that the worst does not touch the frame
    top = max((point.rtt or 0.0 for point in answered), default=0.0) * 1.1 or 0.001
    span = max((point.at for point in report.points), default=0.0) or 1.0

    def x(at: float) -> float:
        return LEFT + (RIGHT - LEFT) * at / span

    def y(rtt: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * rtt / top

    head = list(_head(report))
    body = [*_axes(top, span, x, y), *_marks(report, y)]
    body += _dots(answered, x, y) if len(answered) <= _DOTS else _columns(answered, x, y)
    ticks = dict.fromkeys(round(x(point.at), 1) for point in report.points if point.rtt is None)
    body += [_line(at, BOTTOM - 9, at, BOTTOM, _LOST) for at in ticks]
    body += _histogram(answered, top)
    text, under = "".join(f"{line}\n" for line in head), LINE * len(head) + 12
    height = under + BOTTOM + FOOT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12" '
        f'fill="{_INK}">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        f'{text}<g transform="translate(0 {under})">\n' + "\n".join(body) + "\n</g>\n</svg>\n"
    )


def _head(report: Report) -> Iterator[str]:
    about = [report.target, f"{report.protocol}, {report.size} bytes every {report.interval:g} s"]
    counts = [f"{report.sent} sent, {report.received} received"]
    counts += [f"{report.lost} lost ({report.loss * 100:.2f} %)"]
    for name, n in (
        ("not sent", report.unsent),
        ("duplicates", report.duplicates),
        ("reordered", report.reordered),
        ("late", report.late),
        ("ignored", report.ignored),
    ):
        if n:
            counts.append(f"{n} {name}")
    trips = []
    if report.rtt is not None:
        parts = [("min", report.rtt.min), ("mean", report.rtt.mean), ("p50", report.rtt.p50)]
        parts += [("p95", report.rtt.p95), ("p99", report.rtt.p99), ("max", report.rtt.max)]
        parts += [("jitter", report.jitter)]
        trips = [f"{name} {v * 1e3:.3f}" for name, v in parts if v is not None]
        trips[0] = f"round trips in ms: {trips[0]}"
    y = 10.0
    for words, letter, more in (
        (about, _BOLD, 'font-size="15" font-weight="bold"'),
        (counts, _PLAIN, ""),
        (trips, _PLAIN, ""),
    ):
        for line in _wrapped(words, letter):
            y += LINE
            yield _text(LEFT, y, line, more)


def _axes(top: float, span: float, x: Scale, y: Scale) -> Iterator[str]:
    for rtt in steps(top):
        yield _line(LEFT, y(rtt), RIGHT, y(rtt), _FAINT)
        yield _text(LEFT - 8, y(rtt) + 4, f"{rtt * 1e3:g}", 'text-anchor="end"')
    for at in steps(span, 8):
        yield _line(x(at), TOP, x(at), BOTTOM, _FAINT)
        yield _text(x(at), BOTTOM + 18, f"{at:g}", 'text-anchor="middle"')
    yield _text((LEFT + RIGHT) / 2, BOTTOM + 38, "seconds after the first", 'text-anchor="middle"')
    middle = (TOP + BOTTOM) / 2
    turn = f'text-anchor="middle" transform="rotate(-90 18 {middle})"'
    yield _text(18, middle, "round trip, ms", turn)
    yield _line(LEFT, BOTTOM, RIGHT, BOTTOM, _INK)
    yield _line(LEFT, TOP, LEFT, BOTTOM, _INK)
    yield _line(LEFT, BOTTOM + 52, LEFT, BOTTOM + 61, _LOST, 'stroke-width="2"')
    yield _text(LEFT + 8, BOTTOM + 61, "lost")


def _marks(report: Report, y: Scale) -> Iterator[str]:
    rtt = report.rtt
    if rtt is None:
        return
    last = math.inf
    for name, value in (("p99", rtt.p99), ("p95", rtt.p95), ("p50", rtt.p50)):
        if value is None:
            continue
        yield _line(LEFT, y(value), RIGHT, y(value), "#888", 'stroke-dasharray="4 3"')
        if abs(y(value) - last) >= 12:
            last = y(value)
            yield _text(RIGHT + 3, y(value) + 4, name, 'font-size="10" fill="#666"')


def _dots(points: list[Point], x: Scale, y: Scale) -> Iterator[str]:
    for point in points:
        assert point.rtt is not None
        yield (
            f'<circle cx="{x(point.at):.1f}" cy="{y(point.rtt):.1f}" r="2" fill="{_DOT}" '
            'fill-opacity="0.6"/>'
        )


def _columns(points: list[Point], x: Scale, y: Scale) -> Iterator[str]:
    columns: dict[int, list[float]] = {}
    for point in points:
        assert point.rtt is not None
        columns.setdefault(int(x(point.at)), []).append(point.rtt)
    for at, rtts in columns.items():
        rtts.sort()
        yield _line(at, y(rtts[0]), at, y(rtts[-1]) - 0.5, _DOT, 'stroke-opacity="0.35"')
        middle = y(rtts[len(rtts) // 2])
        yield f'<circle cx="{at}" cy="{middle:.1f}" r="1.2" fill="{_DOT}"/>'


def _histogram(points: list[Point], top: float) -> Iterator[str]:
    if not points:
        return
    counts = [0] * _BINS
    for point in points:
        assert point.rtt is not None
        counts[min(int(point.rtt / top * _BINS), _BINS - 1)] += 1
    most = max(counts)
    height = (BOTTOM - TOP) / _BINS
    for i, count in enumerate(counts):
        if count:
            width = max((WIDTH - 30 - HISTOGRAM) * count / most, 1)
            yield (
                f'<rect x="{HISTOGRAM}" y="{BOTTOM - (i + 1) * height:.1f}" width="{width:.1f}" '
                f'height="{height - 0.5:.1f}" fill="{_DOT}"/>'
            )
    yield _line(HISTOGRAM, TOP, HISTOGRAM, BOTTOM, _INK)
    yield _text(HISTOGRAM, BOTTOM + 18, f"longest bar: {most}")
