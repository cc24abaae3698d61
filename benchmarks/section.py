"""
What a suite consists of: sections, in which contestants take turns.

A case is a L{Contestant}: a name, the reason why it cannot run, and C{once()}, which
returns figures by name.  A section has contestants, columns made from their figures, and
bars.  L{run} has them take turns, and goes on with those alone whose bar is not
resolved yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Protocol

import attrs

from benchmarks.spread import ENOUGH, Bar, Judged, judge, ratios

__all__ = ["Column", "Contestant", "Figures", "Measured", "Section", "Wanted", "run", "versus"]

#: Of one contestant: name of a figure to its value in each round.
Figures = dict[str, list[float]]
Rows = dict[str, Figures]
Series = Callable[[Figures], Sequence[float]]


class Contestant(Protocol):
    """
    @ivar name: in tables.
    """

    name: str

    def missing(self) -> str | None:
        """
        Return why it cannot run here; L{None} if it can.
        """

    def once(self) -> dict[str, float]:
        """
        Run it once, check that it did its work, and return the figures.
        """


@attrs.frozen
class Column:
    """
    @ivar title: with the unit.
    @ivar of: the figures of a contestant to a value for each round.
    @ivar form: how a value is written.
    """

    title: str
    of: Series
    form: str = "{:.2f}"


@attrs.frozen
class Wanted:
    """
    A bar before anything was measured.

    @ivar text: what is asked of whom.
    @ivar names: contestants that it takes.
    @ivar values: their figures, in this order, to one value for each pair.
    @ivar among: further contestants, of whom those that ran are handed in as well; one must.
    """

    text: str
    names: tuple[str, ...]
    values: Callable[..., Sequence[float]]
    limit: float
    stretch: float | None = None
    atMost: bool = False
    exact: bool = False
    unit: str = ""
    among: tuple[str, ...] = ()

    def bar(self, rows: Rows) -> Bar:
        """
        Return the bar with what was measured; without values if one was missing.
        """
        mine = self._paired(rows)
        there = all(name in mine for name in self.names)
        enough = there and (not self.among or len(mine) > len(self.names))
        values = self.values(*mine.values()) if enough else ()
        return Bar(self.text, values, self.limit, self.stretch, self.atMost, self.exact, self.unit)

    def _paired(self, rows: Rows) -> Rows:
        """
        Return the figures of the rounds that all of them took part in: some may have gone
        on without the others.
        """
        mine = {name: rows[name] for name in (*self.names, *self.among) if rows.get(name)}
        least = min((len(of) for row in mine.values() for of in row.values()), default=0)
        return {name: {key: of[:least] for key, of in row.items()} for name, row in mine.items()}


def versus(
    ours: str, peer: str, atLeast: float, of: Series, stretch: float | None = None, text: str = ""
) -> Wanted:
    """
    Return the bar "the peer's time divided by ours".
    """
    return Wanted(
        text or f"{peer} / {ours}",
        (peer, ours),
        lambda theirs, mine: ratios(of(theirs), of(mine)),
        atLeast,
        stretch,
        unit="x",
    )


@attrs.define
class Section:
    """
    @ivar title: above its table.
    @ivar columns: the first is drawn.
    @ivar rounds: that everybody takes; L{None}: as many as the suite is asked for.
    @ivar warm: whether a round that does not count comes first.
    """

    title: str
    contestants: Sequence[Contestant]
    columns: Sequence[Column]
    bars: Sequence[Wanted] = ()
    note: str = ""
    rounds: int | None = None
    warm: bool = True


@attrs.define
class Measured:
    """
    A section after it ran.

    @ivar key: what it is called on the command line.
    @ivar rows: of those that ran.
    @ivar missing: name to the reason, of those that did not.
    """

    key: str
    title: str
    columns: Sequence[Column]
    rows: Rows
    bars: Sequence[Judged] = ()
    missing: dict[str, str] = attrs.field(factory=dict)
    note: str = ""

    def table(self) -> list[list[str]]:
        """
        Return a line of cells for each contestant, the name first.
        """
        return [
            [name, *(column.form.format(median(column.of(row))) for column in self.columns)]
            for name, row in self.rows.items()
        ]


def run(key: str, section: Section, rounds: int, upTo: int = ENOUGH) -> Measured:
    """
    Have the contestants take turns, each other round the other way round.

    @param key: of the section.
    @param rounds: for everybody.
    @param upTo: rounds for those whose bars are not resolved before.
    """
    rounds = section.rounds or rounds
    missing: dict[str, str] = {}
    there: list[Contestant] = []
    for each in section.contestants:
        why = each.missing()
        if why is None:
            there.append(each)
        else:
            missing[each.name] = why
    rows: Rows = {each.name: {} for each in there}
    if section.warm:
        for each in there:
            each.once()
    done = 0
    while there and done < rounds:
        _turns(there if done % 2 else there[::-1], rows)
        done += 1
    while done < upTo and (some := _undecided(section, there, rows)):
        _turns(some if done % 2 else some[::-1], rows)
        done += 1
    bars = [judge(wanted.bar(rows)) for wanted in section.bars]
    return Measured(key, section.title, section.columns, rows, bars, missing, section.note)


def _turns(contestants: Iterable[Contestant], rows: Rows) -> None:
    for each in contestants:
        for key, value in each.once().items():
            rows[each.name].setdefault(key, []).append(value)


def _undecided(section: Section, there: Sequence[Contestant], rows: Rows) -> list[Contestant]:
    names = {
        name
        for wanted in section.bars
        if judge(wanted.bar(rows)).verdict == "not resolved"
        for name in (*wanted.names, *wanted.among)
    }
    return [each for each in there if each.name in names]
