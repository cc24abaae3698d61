"""
What was acknowledged at C{full} survives the power cut that follows, and what
has a name has its content: on a model in which anything unsynced may vanish.
"""

from __future__ import annotations

import random
import shutil

import pytest

from tests.transfer.stores.deaths import (
    SCENARIOS,
    hidden,
    life,
    lookLater,
    opened,
    prepared,
    published,
)
from tests.transfer.stores.kit import Recorded, visible
from tests.transfer.stores.powerloss import Disk, materialise


def worst(scenario, level, tmp_path, points, strict):
    """
    Cut the power after each call, or after C{points} of them.

    @return: how many states were looked at.
    """
    root = prepared(scenario, level, tmp_path / "root")
    disk = Disk(strict=strict)
    disk.load(root)
    acknowledged = tmp_path / "acknowledged"
    known = {scenario.content, b"other"}
    syscalls = life(scenario, level, root, acknowledged, None)
    name = acknowledged.read_text()
    # the acknowledgement leaves before the store is closed
    last = len(syscalls.log) - closing(syscalls)
    chance = random.Random(3)
    looked = set(chance.sample(range(len(syscalls.log)), min(points, len(syscalls.log))))
    looked |= {last, len(syscalls.log) - 1}
    states = 0
    for number, call in enumerate(syscalls.log):
        disk.apply(*call)
        if number not in looked:
            continue
        for tree in disk.after(chance):
            states += 1
            where = tmp_path / "after"
            shutil.rmtree(where, ignore_errors=True)
            materialise(tree, where)
            there = published(where)
            at = (scenario.name, level, number, call[0])
            if level != "none":
                assert set(there.values()) <= known, at
            if number >= last and level == "full":
                assert there.get(name) == scenario.content, at
            if level == "full":
                # a name that was never synced may come back without the
                # private one that proves whose it is, until there is a receipt
                comeBack(scenario, level, where, at, 2 if strict and number < last else 1)
    return states


def closing(syscalls: Recorded) -> int:
    """
    How many calls came after the acknowledgement: those of C{close()}, which
    begin when the ledger's own file is removed.
    """
    removed = [
        number
        for number, (name, arguments, _, _) in enumerate(syscalls.log)
        if name == "unlink" and arguments[0].startswith("process-")
    ]
    return len(syscalls.log) - removed[-1]


def comeBack(scenario, level, where, at, most):
    """
    The receiver starts on what is left and the sender comes again: one copy,
    and the right one.
    """
    store, reactor, _ = opened(where, apart=scenario.apart)
    receipt = scenario.send(store, reactor, scenario.offer(level))
    lookLater(store, reactor)
    reactor.wait(store.close())
    assert hidden(where) == [], at
    after = visible(where)
    assert after[receipt.name] == scenario.content, at
    copies = [name for name, content in after.items() if content == scenario.content]
    assert 1 <= len(copies) <= most, (at, copies)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("level", ["data", "full"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_powerCut(scenario, level, tmp_path, strict):
    assert worst(scenario, level, tmp_path, 4, strict) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("level", ["data", "full"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_powerCutAfterEveryCall(scenario, level, tmp_path, strict):
    assert worst(scenario, level, tmp_path, 1 << 30, strict) > 100


def test_theModelNoticesAMissingSync(tmp_path):
    """
    The proof can fail: without the file's sync an empty file has the name.
    """
    scenario = SCENARIOS[0]
    root = prepared(scenario, "full", tmp_path / "root")
    disk = Disk(strict=True)
    disk.load(root)
    syscalls = life(scenario, "full", root, tmp_path / "acknowledged", None)
    synced = syscalls.names().index("utime") + 1
    assert syscalls.log[synced][0] == "fsync"
    contents = set()
    for number, call in enumerate(syscalls.log):
        if number != synced:
            disk.apply(*call)
    for tree in disk.after(random.Random(1)):
        where = tmp_path / "after"
        shutil.rmtree(where, ignore_errors=True)
        materialise(tree, where)
        contents |= set(visible(where).values())
    assert b"" in contents
