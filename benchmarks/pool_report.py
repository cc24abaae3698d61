"""
What C{benchmarks/pool.py} measured, as a table and as a plot.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any


def median(figures: list[float]) -> float:
    """
    @return: the median.
    """
    return statistics.median(figures)


def report(results: dict[str, Any]) -> str:
    """
    @return: a table.
    """
    lines = [f"Python {sys.version.split()[0]}, load {results['load'][0]:.2f}", ""]
    cycles = results["cycle"]
    floor = cycles["floor: deque + await succeed()"]
    lines.append(f"{'cycle':42}{'us':>9}{'x floor':>10}")
    for name, figures in sorted(cycles.items(), key=lambda item: median(item[1])):
        ratio = median([mine / low for mine, low in zip(figures, floor, strict=False)])
        lines.append(f"  {name:40}{median(figures):9.2f}{ratio:10.1f}")
    ours, rival = cycles["ours: async with"], fastest(cycles)
    ratio = median([a / b for a, b in zip(ours, cycles[rival], strict=False)])
    lines += [f"  async with: {ratio:.2f} x the fastest peer ({rival}); the bar is 0.6", ""]
    lines.append("flat (many against few; the bar is 1.2)")
    lines += [f"  {name:40}{value:9.2f}" for name, value in results["flat"].items()]
    for clients, each in results["contended"].items():
        floors = {
            True: each["DeferredQueue"]["us"],
            False: each["asyncio.Queue"]["us"],
        }
        lines.append("")
        lines.append(
            f"{f'contended, {clients} clients':42}{'us':>9}{'x floor':>10}{'overtaken':>11}"
        )
        for name, mine in sorted(each.items(), key=lambda item: median(item[1]["us"])):
            pairs = zip(mine["us"], floors[mine["twisted"]], strict=True)
            ratio = median([us / low for us, low in pairs])
            row = f"{median(mine['us']):9.1f}{ratio:10.2f}{mine['overtaken']:11}"
            lines.append(f"  {name:40}{row}")
    lines += ["", f"{'storm':42}{'us':>9}{'cancels':>10}{'lost of 8':>11}"]
    for name, each in results["storm"].items():
        lines.append(f"  {name:40}{each['us']:9.1f}{each['cancels']:10}{each['lost']:11}")
    lines += ["", f"{'spike':42}{'dials':>9}{'opened':>10}{'ms':>9}"]
    for name, each in results["spike"].items():
        lines.append(f"  {name:40}{each['dials']:9}{each['opened']:10}{each['ms']:9.0f}")
    lines += ["", f"{'stale':42}{'handed':>9}{'dead':>10}{'dirty':>9}"]
    for name, each in results["stale"].items():
        row = f"{each['handed out']:9}{each['dead']:10}{each['dirty']:9}"
        lines.append(f"  {name:40}{row}")
    lines += ["", f"{'down: dials in 2 s':42}"]
    lines += [f"  {name:40}{value:9}" for name, value in results["down"].items()]
    lines += ["", f"{'first byte, us':42}{'p50':>9}{'p99':>9}"]
    for name, each in results["bytes"].items():
        lines.append(f"  {name:40}{each['p50']:9.0f}{each['p99']:9.0f}")
    each = results["requests"]
    lines += ["", "requests over real sockets, us (one after another)"]
    lines += [f"  {way:40}{each[way]:9.1f}" for way in ("held", "pooled")]
    lines.append(f"  {'pooled : held':40}{each['ratio']:9.3f}")
    lines += ["", f"{'2,000 idle':42}{'bytes':>9}{'timers':>9}"]
    for name, each in results["idle"].items():
        lines.append(f"  {name:40}{each['bytes']:9.0f}{each['timers']:9}")
    return "\n".join(lines) + "\n"


def fastest(cycles: dict[str, list[float]]) -> str:
    """
    @return: the fastest real pool of others.
    """
    no = ("ours", "floor", "DeferredQueue", "asyncio.Queue")
    return min(
        (name for name in cycles if not name.startswith(no)), key=lambda name: median(cycles[name])
    )


def plot(cycles: dict[str, list[float]]) -> str:
    """
    @return: an SVG of the cycles, on a logarithmic scale.
    """
    from math import log10

    rows = sorted(((median(figures), name) for name, figures in cycles.items()))
    height = 26 * len(rows) + 50
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}">',
        "<style>text { font: 13px sans-serif }</style>",
        '<text x="10" y="20">microseconds for acquire and release (logarithmic)</text>',
    ]
    for index, (value, name) in enumerate(rows):
        top = 36 + 26 * index
        width = 40 + 180 * log10(max(value, 0.1) * 10)
        color = "#3572a5" if name.startswith("ours") else "#b0b0b0"
        out.append(f'<text x="250" y="{top + 14}" text-anchor="end">{name}</text>')
        out.append(f'<rect x="258" y="{top}" width="{width:.0f}" height="18" fill="{color}"/>')
        out.append(f'<text x="{264 + width:.0f}" y="{top + 14}">{value:.2f}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
