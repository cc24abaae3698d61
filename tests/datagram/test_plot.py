"""
Pictures fit their frame.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import attrs
import pytest

from connpool.datagram import plot
from connpool.datagram.figures import Point, Report, spread

SVG = "{http://www.w3.org/2000/svg}"

#: Of the font's size, the width of a letter of a wide font: 0.64 for digits, and
#: more for bold text.
LETTER, BOLD = 0.65, 0.72

LONG = "[fe80:1234:5678:9abc:def0:1234:5678:9abc%enp0s31f6interface]:65535"


def report(**fields):
    base = Report(protocol="irtt", target="192.0.2.7:8641", size=64, interval=0.01)
    return attrs.evolve(base, **fields)


def many(n, **fields):
    points = tuple(
        Point(i, i * 0.01, None if i % 8 == 0 else 0.07 + i % 13 / 1000) for i in range(n)
    )
    rtts = [point.rtt for point in points if point.rtt is not None]
    lost = n - len(rtts)
    return report(
        sent=n, received=len(rtts), lost=lost, rtt=spread(rtts), jitter=0.012345678,
        points=points, **fields,
    )  # fmt: skip


def texts(element, x=0.0, y=0.0, size=12.0):
    """
    Each text of a picture, with where it begins and the size of its font.
    """
    moved = re.fullmatch(r"translate\((\S+) (\S+)\)", element.get("transform", ""))
    if moved:
        x, y = x + float(moved[1]), y + float(moved[2])
    size = float(element.get("font-size", size))
    if element.tag == SVG + "text":
        yield element, x + float(element.get("x")), y + float(element.get("y")), size
    for child in element:
        yield from texts(child, x, y, size)


@pytest.mark.parametrize(
    "shown",
    [
        report(),
        many(1000),
        many(1000, duplicates=99_999, reordered=99_999, late=99_999, ignored=99_999, unsent=9_999),
        many(1000, target=LONG, size=65_507, interval=0.000012345),
        many(1000, target="x" * 300, duplicates=10**8, reordered=10**8, late=10**8),
        many(30_000),
    ],
    ids=["empty", "plain", "troubles", "long target", "absurd", "many"],
)
def test_everyTextIsInsideAndNoneOnAnother(shown):
    svg = ET.fromstring(plot(shown))
    width, height = float(svg.get("width")), float(svg.get("height"))
    lines = []
    for element, x, y, size in texts(svg):
        if "rotate" in element.get("transform", ""):
            continue
        letter = BOLD if element.get("font-weight") else LETTER
        long = letter * size * len(element.text)
        left = x - {"end": long, "middle": long / 2}.get(element.get("text-anchor"), 0)
        assert left >= 0, element.text
        assert left + long <= width, element.text
        assert size <= y <= height, element.text
        lines.append((y, left, left + long, element.text))
    for i, (y, left, right, text) in enumerate(lines):
        for y2, left2, right2, other in lines[i + 1 :]:
            apart = abs(y - y2) >= 9 or right <= left2 or right2 <= left
            assert apart, f"{text!r} and {other!r}"


def test_nothingIsLeftOut():
    shown = many(1000, duplicates=72, reordered=319, late=3, unsent=5)
    words = "  ".join(element.text for element, *_ in texts(ET.fromstring(plot(shown))))
    for part in ("1000 sent, 875 received", "125 lost (12.50 %)", "5 not sent", "72 duplicates",
                 "319 reordered", "3 late", "p95", "p99", "jitter 12.346"):  # fmt: skip
        assert part in words


def test_aLongTargetIsWhole():
    svg = ET.fromstring(plot(many(10, target="x" * 300)))
    bold = [element.text for element, *_ in texts(svg) if element.get("font-weight")]
    assert "".join(bold).replace(", ", "").startswith("x" * 300)
