"""
What was measured, as text, reStructuredText and JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from benchmarks.section import Measured
from benchmarks.spread import Judged

__all__ = ["asJSON", "asRST", "asText", "barCells", "dumped", "inserted", "measuredOn", "summary"]

_BEGIN, _END = ".. begin of the short table", ".. end of the short table"
_BAR_TITLES = ("bar", "asked for", "measured", "95 % interval", "pairs", "verdict")


def barCells(judged: Judged) -> list[str]:
    """
    Return the cells of a bar, as in C{_BAR_TITLES}.
    """
    bar = judged.bar
    asked = f"{'≤' if bar.atMost else '≥'} {_figure(bar.limit)}"
    if bar.stretch is not None:
        asked += f", hoped {_figure(bar.stretch)}"
    name, reached = bar.bound
    if reached is not None:
        asked += f"; {name}: {_figure(reached)}"
    if judged.middle is None or judged.low is None or judged.high is None:
        return [bar.text, asked, "", "", "0", judged.verdict]
    unit = f" {bar.unit}" if bar.unit else ""
    between = f"{_figure(judged.low)} to {_figure(judged.high)}" if len(bar.values) > 1 else ""
    figures = [f"{_figure(judged.middle)}{unit}", between, str(len(bar.values))]
    return [bar.text, asked, *figures, judged.verdict]


def _figure(value: float) -> str:
    if value and abs(value) < 1e-2:
        return f"{value:.2g}"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _grid(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = []
    for row in (titles, *rows):
        first, *rest = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        lines.append("  ".join(cells).rstrip())
    return lines


def asText(measured: Measured) -> str:
    """
    Return the tables for a terminal.
    """
    lines = ["", measured.title]
    if measured.note:
        lines.append(f"  {measured.note}")
    if measured.rows:
        titles = ["", *(column.title for column in measured.columns)]
        lines += [f"  {line}" for line in _grid(titles, measured.table())]
    lines += [f"  left out: {name}: {why}" for name, why in measured.missing.items()]
    if measured.bars:
        lines += ["", *_grid(_BAR_TITLES, [barCells(each) for each in measured.bars])]
    return "\n".join(lines) + "\n"


def _simple(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """
    Return a list-table, which takes any cell.
    """
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (titles, *rows):
        for index, cell in enumerate(row):
            plain = cell.replace("--", "\\-\\-")  # no dash
            lines.append(f"   {'* -' if index == 0 else '  -'} {plain}".rstrip())
    return [*lines, ""]


def measuredOn(machine: dict[str, Any]) -> str:
    """
    Return a sentence about when and where.
    """
    return (
        "Measured {date} on {processor} with {cores} cores, {kernel}, Python {python}; load "
        "{load} before it began.".format(**machine)
    )


def asRST(machine: dict[str, Any], command: str, sections: Sequence[Measured]) -> str:
    """
    Return the part of a page that holds the tables; titles are rubrics, so that it fits
    anywhere.
    """
    lines = [
        f".. Made by {command}; do not edit.",
        "",
        f"{measuredOn(machine)} The command: ``{command}``.",
        "",
    ]
    for each in sections:
        lines += [f".. rubric:: {each.title}", ""]
        if each.note:
            lines += [each.note, ""]
        if each.rows:
            titles = ["", *(column.title for column in each.columns)]
            lines += _simple(titles, each.table())
        if each.missing:
            gone = "; ".join(f"{name}: {why}" for name, why in each.missing.items())
            lines += [f"Left out: {gone}.", ""]
        if each.bars:
            lines += _simple(_BAR_TITLES, [barCells(bar) for bar in each.bars])
    return "\n".join(lines)


def summary(sections: Sequence[Measured]) -> str:
    """
    Return the short table: every bar of a suite.
    """
    rows = [
        [each.title, cells[0], cells[2], cells[5]]
        for each in sections
        for cells in map(barCells, each.bars)
    ]
    if not rows:
        return ""
    titles = ("", "", "measured", "bar")
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([rule, *lines, rule, ""])


def inserted(page: str, table: str) -> str:
    """
    Put the short table into a page, between its two marks.

    @raise ValueError: if it has none.
    """
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ValueError(f"there is no {_BEGIN!r} and {_END!r} after it")
    return f"{before}{begin}\n\n{table.strip()}\n\n{end}{after}"


def dumped(found: dict[str, Any]) -> str:
    """
    Return JSON of numbers with six digits, a list of them on one line.
    """

    def shorter(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.6g}")
        if isinstance(value, dict):
            return {key: shorter(each) for key, each in value.items()}
        return [*map(shorter, value)] if isinstance(value, (list, tuple)) else value

    text = json.dumps(shorter(found), indent=1)
    return re.sub(r"\[\s([^][{}]*?)\s+\]", lambda it: f"[{' '.join(it[1].split())}]", text) + "\n"


def asJSON(
    suite: str, machine: dict[str, Any], command: str, sections: Sequence[Measured]
) -> dict[str, Any]:
    """
    Return everything, each round's figures included.
    """
    return {
        "suite": suite,
        "command": command,
        "machine": machine,
        "sections": {
            each.key: {
                "title": each.title,
                "columns": ["", *(column.title for column in each.columns)],
                "table": each.table(),
                "rounds": each.rows,
                "missing": each.missing,
                "bars": [
                    {
                        "text": judged.bar.text,
                        "limit": judged.bar.limit,
                        "stretch": judged.bar.stretch,
                        "at_most": judged.bar.atMost,
                        "bound": judged.bar.bound,
                        "median": judged.middle,
                        "low": judged.low,
                        "high": judged.high,
                        "values": judged.bar.values,
                        "verdict": judged.verdict,
                    }
                    for judged in each.bars
                ],
            }
            for each in sections
        },
    }
