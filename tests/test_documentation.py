"""
Statements of the documentation about the code, and the parts that are made of it.
"""

import re
import sys

import pytest

from tests.helpers.processes import CHECKOUT

sys.path.append(str(CHECKOUT / "docs"))
import state_diagrams

ARCHITECTURE = (CHECKOUT / "docs/architecture.rst").read_text()
FILES = sorted(set(re.findall(r"[\w/]+\.py\b", ARCHITECTURE)))
ROOMS = sorted(set(re.findall(r"\b[a-z]+/(?=[^\w])", ARCHITECTURE)))


def test_itNamesFiles():
    assert len(FILES) > 40
    assert {"pool/", "transfer/", "stores/"} <= set(ROOMS)


@pytest.mark.parametrize("name", [*FILES, *ROOMS])
def test_whatItNamesIsThere(name):
    found = [*CHECKOUT.glob(name), *(CHECKOUT / "connpool").glob(f"**/{name}")]
    assert found, f"docs/architecture.rst names {name}"


def test_everyRoomHasItsPlace():
    rooms = {path.parent.name for path in (CHECKOUT / "connpool").glob("*/__init__.py")}
    assert rooms <= {room.rstrip("/") for room in ROOMS}


def test_aDiagram():
    rows = [("go", "a", "b"), ("stop", "a", "c"), ("stop", "b", "c"), ("again", "c", "a")]
    assert state_diagrams.draw("a", rows) == [
        "   go  stop  again ",
        "a ──●────●──────▲──",
        "    │    │      │",
        "b ──▼────●──────│──",
        "         │      │",
        "c ───────▼──────●──",
    ]


def test_everyMachineIsDrawn():
    machines = state_diagrams.machines()
    made = {
        ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
        for path in (CHECKOUT / "connpool").rglob("*.py")
        if "TypeMachineBuilder(" in path.read_text()
    }
    assert made
    assert set(machines) == made
    for name in made:
        first, transitions = state_diagrams.transitionsOf(machines[name])
        drawn = "\n".join(state_diagrams.draw(first, transitions))
        for label, source, target in transitions:
            assert all(word in drawn for word in (label, source, target))
