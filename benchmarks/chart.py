"""
What was measured, as a picture: a bar for each contestant's median with its interval,
a panel for each section.  It reads on white and on black.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import log10
from statistics import median

from benchmarks.section import Measured
from benchmarks.spread import interval

__all__ = ["draw"]

_WIDTH, _LABEL, _ROW, _HEAD = 760, 240, 22, 46
_PLOT = _WIDTH - _LABEL - 90
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#777}.title{font-weight:600}"
    ".ours{fill:#2a78b5}.peer{fill:#9aa0a6}.spread{stroke:#777;stroke-width:1.5;fill:none}"
)
#: Above this many times the least, lengths are logarithmic.
_FAR = 40


def draw(title: str, sections: Sequence[Measured]) -> str:
    """
    Return an SVG of the first column of each section.
    """
    body: list[str] = []
    top = 34
    for each in sections:
        if each.rows:
            body += _panel(each, top)
            top += _HEAD + _ROW * len(each.rows)
    size = f'viewBox="0 0 {_WIDTH} {top + 8}" width="{_WIDTH}" height="{top + 8}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            f'<text x="8" y="20">{escape(title)}</text>',
            *body,
            "</svg>",
            "",
        ]
    )


def _panel(section: Measured, top: int) -> list[str]:
    column = section.columns[0]
    values = {name: column.of(row) for name, row in section.rows.items()}
    spreads = {name: interval(of) for name, of in values.items()}
    most = max(1e-9, *(high for _, high in spreads.values()))
    least = min(median(of) for of in values.values())
    logarithmic = least > 0 and most / least > _FAR
    scale = ", logarithmic" if logarithmic else ""

    def length(value: float) -> float:
        if logarithmic:
            return _PLOT * (0.1 + 0.9 * log10(max(value / least, 1e-1)) / log10(most / least))
        return _PLOT * value / most

    title = escape(f"{section.title}: {column.title}{scale}")
    lines = [f'<text class="title" x="8" y="{top + 22}">{title}</text>']
    for index, (name, of) in enumerate(values.items()):
        y = top + 32 + _ROW * index
        kind = "ours" if name.startswith("ours") else "peer"
        width = max(length(median(of)), 1.0)
        low, high = (_LABEL + max(length(value), 0.0) for value in spreads[name])
        right = max(_LABEL + width, high) + 6
        ends = f"M{low:.1f} {y + 9}H{high:.1f}M{low:.1f} {y + 5}v8M{high:.1f} {y + 5}v8"
        shown = escape(column.form.format(median(of)))
        lines += [
            f'<text x="{_LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{_LABEL}" y="{y + 2}" width="{width:.1f}" height="14"/>',
            f'<path class="spread" d="{ends}"/>',
            f'<text x="{right:.1f}" y="{y + 13}">{shown}</text>',
        ]
    return lines
