"""
The diagrams of states, drawn from the machines when the documentation is built.

A state is a line from left to right, an input is a column: it leads from each
state with a dot to the one with the arrow.  Inputs that leave the state as it
is are not drawn.
"""

from __future__ import annotations

import pkgutil
from collections import defaultdict
from importlib import import_module
from typing import Any

from automat import TypeMachine

import connpool

#: The line that the diagrams take the place of.
MARK = ".. states\n"

#: Input, source and target of each transition.
Transitions = list[tuple[str, str, str]]


def machines() -> dict[str, Any]:
    """
    Every machine that a module of ours has made, by the name of the module.
    """
    found: dict[str, Any] = {}
    for module in pkgutil.walk_packages(connpool.__path__, "connpool."):
        if module.name.endswith("__main__"):
            continue
        for value in vars(import_module(module.name)).values():
            if isinstance(value, TypeMachine) and value not in found.values():
                found[module.name] = value
    return found


def transitionsOf(machine: Any) -> tuple[str, Transitions]:
    """
    The name of the first state, and what leads from one state to another.
    """
    automaton = vars(machine)["__automat_automaton__"]
    names = {state: getattr(state, "name", state) for state in automaton.states()}
    rows = [
        (getattr(symbol, "name", symbol), names[source], names[target])
        for source, symbol, target, _ in automaton.allTransitions()
        if source is not target
    ]
    return names[automaton.initialState], sorted(rows)


def inOrder(first: str, transitions: Transitions) -> list[str]:
    """
    The states, each as far from the first as the longest way to it without a circle.
    """
    depth = {first: 0}

    def walk(state: str, path: tuple[str, ...]) -> None:
        for _, source, target in transitions:
            if source == state and target not in path:
                if len(path) > depth.get(target, -1):
                    depth[target] = len(path)
                walk(target, (*path, target))

    walk(first, (first,))
    return sorted(depth, key=lambda state: (depth[state], state))


def draw(first: str, transitions: Transitions) -> list[str]:
    """
    The lines of one diagram.
    """
    states = inOrder(first, transitions)
    row = {state: number for number, state in enumerate(states)}
    columns: dict[tuple[str, str], set[int]] = defaultdict(set)
    for label, source, target in transitions:
        columns[label, target].add(row[source])
    inputs = sorted(columns, key=lambda key: (min(columns[key]), row[key[1]], key))
    margin = max(map(len, states)) + 1
    lines = [" " * margin + "".join(f" {label} " for label, _ in inputs)]
    for number, state in enumerate(states):
        line, below = state.ljust(margin), " " * margin
        for label, target in inputs:
            sources, end = columns[label, target], row[target]
            top, bottom = min(*sources, end), max(*sources, end)
            crossing = "│" if top < number < bottom else "─"
            if number == end:
                crossing = "▼" if min(sources) < end else "▲"
            elif number in sources:
                crossing = "●"
            left, right = (len(label) + 1) // 2, len(label) - (len(label) + 1) // 2
            line += "─" * left + "─" + crossing + "─" * right
            below += " " * left + " " + ("│" if top <= number < bottom else " ") + " " * right
        lines += [line, below.rstrip()]
    return lines[:-1]


def diagrams() -> str:
    """
    One for each machine.
    """
    lines = []
    for name, machine in sorted(machines().items()):
        title = f"``{name}``"
        lines += ["", title, "^" * len(title), "", ".. code-block:: none", ""]
        lines += [f"   {line}".rstrip() for line in draw(*transitionsOf(machine))]
    return "\n".join([*lines, "", ""])


def insert(_app: object, _name: str, source: list[str]) -> None:
    """
    Sphinx's C{source-read} event.
    """
    if MARK in source[0]:
        source[0] = source[0].replace(MARK, diagrams())
