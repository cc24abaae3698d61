"""
What a suite consists of: sections, in which contestants take turns.

A case is a L{Contestant}: a name, the reason why it cannot run, and C{once()}, which
returns figures by name.  A section has contestants, columns made from their figures, and
bars.  L{run} has them take turns, and goes on with those alone whose bar is not
resolved yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Protocol

import attrs

from benchmarks.processes import Failed
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
    @ivar bound: a contestant that does the least there is to do: what it reaches in the place of
        the last of C{names} is shown beside the limit.
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
    bound: str = ""

    def bar(self, rows: Rows) -> Bar:
        """
        Return the bar with what was measured; without values if one was missing.
        """
        mine = _paired(rows, (*self.names, *self.among))
        there = all(name in mine for name in self.names)
        enough = there and (not self.among or len(mine) > len(self.names))
        values = self.values(*mine.values()) if enough else ()
        reached = None
        least = _paired(rows, (*self.names[:-1], self.bound))
        if self.bound in least and len(least) == len(self.names):
            reached = median(self.values(*least.values()))
        return Bar(
            *(self.text, values, self.limit, self.stretch, self.atMost, self.exact, self.unit),
            bound=(self.bound, reached),
        )


def _paired(rows: Rows, names: Sequence[str]) -> Rows:
    """
    Return the figures of the rounds that all of them took part in: some may have gone
    on without the others.
    """
    mine = {name: rows[name] for name in names if rows.get(name)}
    least = min((len(of) for row in mine.values() for of in row.values()), default=0)
    return {name: {key: of[:least] for key, of in row.items()} for name, row in mine.items()}


def versus(
    ours: str,
    peer: str,
    atLeast: float,
    of: Series,
    stretch: float | None = None,
    text: str = "",
    bound: str = "",
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
        bound=bound,
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
    @ivar failed: whether one of those began.
    """

    key: str
    title: str
    columns: Sequence[Column]
    rows: Rows
    bars: Sequence[Judged] = ()
    missing: dict[str, str] = attrs.field(factory=dict)
    note: str = ""
    failed: bool = False

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
    Have the contestants take turns, each other round the other way round.  One that
    fails is left out, whatever it has done before, and the others go on.

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
    failed = False

    def turns(contestants: Sequence[Contestant], rows: Rows) -> None:
        nonlocal failed
        for each in contestants:
            try:
                figures = each.once()
            except Failed as e:
                failed = True
                missing[each.name] = str(e)
                there.remove(each)
                del rows[each.name]
                continue
            for figure, value in figures.items():
                rows[each.name].setdefault(figure, []).append(value)

    if section.warm:
        turns([*there], {each.name: {} for each in there})
        rows = {each.name: {} for each in there}
    done = 0
    while there and done < rounds:
        turns(there[:: 1 if done % 2 else -1], rows)
        done += 1
    while done < upTo and (some := _undecided(section, there, rows)):
        turns(some[:: 1 if done % 2 else -1], rows)
        done += 1
    bars = [judge(wanted.bar(rows)) for wanted in section.bars]
    columns, note = section.columns, section.note
    return Measured(key, section.title, columns, rows, bars, missing, note, failed)


def _undecided(section: Section, there: Sequence[Contestant], rows: Rows) -> list[Contestant]:
    names = {
        name
        for wanted in section.bars
        if judge(wanted.bar(rows)).verdict == "not resolved"
        for name in (*wanted.names, *wanted.among)
    }
    return [each for each in there if each.name in names]
