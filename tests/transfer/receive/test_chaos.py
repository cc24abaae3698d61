"""
Everything at once: damaged bytes, broken and silent connections, several
lanes, restarts of the receiver; in the end each file is there, once, and right.

C{CHAOS=1000 pytest -k chaos} is the long run; a seed that failed is in the
message.
"""

import os
import random

from connpool.transfer.receive import smallfiles
from connpool.transfer.send.client import Retry
from connpool.transfer.send.request import SendRequest
from tests.transfer.world import World

ROUNDS = int(os.environ.get("CHAOS", "60"))


def plan(chance, total):
    """
    What one connection shall suffer.
    """
    suffering = {"chunk": chance.choice([100, 1000, 4096, 1 << 20])}
    if chance.random() < 0.7:
        suffering["cut"] = (
            chance.choice([0, 0, 1]),
            int(total * chance.random() ** 2),
            chance.choice(["fin", "rst", "silent"]),
        )
    if chance.random() < 0.5:
        # not in the preamble: that is another protocol, and final
        sides = [0, 0, 0, 1]
        suffering["flips"] = [(chance.choice(sides), chance.randrange(8, total)) for _ in range(3)]
    return suffering


def oneRun(seed, tmp_path):
    chance = random.Random(seed)
    source = tmp_path / f"source{seed}"
    source.mkdir()
    files = {}
    for number in range(chance.randrange(1, 8)):
        size = chance.choice([0, 10, 2000, 5000, 4096 * 3, 4096 * 30 + 1, 4096 * 60])
        data = chance.randbytes(size)
        (source / f"{number}").write_bytes(data)
        files[f"{source.name}/{number}"] = data
    total = sum(map(len, files.values())) + 1000
    world = World(tmp_path / f"state{seed}")
    request = SendRequest(
        "", "none", blockSize=4096, extentBytes=chance.choice([4096, 8192, 1 << 20])
    )
    for _ in range(30):
        world.plan = [plan(chance, total) for _ in range(chance.randrange(1, 6))]
        jobs = chance.choice([1, 1, 2, 4])
        sending = world.sending(source, request=request, jobs=jobs, retry=Retry(attempts=4))
        results = world.start(sending)
        if chance.random() < 0.3:
            # the receiver is replaced while it runs
            for _ in range(chance.randrange(200)):
                if world.wires[-1].alive:
                    world.wires[-1].step()
            for wire in world.wires:
                if wire.alive:
                    wire.reset(wire.ends[1])
            world.restart()
        report = world.finish(results)
        for name, data in world.store.files.items():
            assert files.get(name) == data, (seed, name)
        if report.exitCode == 0:
            break
    else:
        raise AssertionError((seed, report))
    assert world.store.files == files, seed
    world.settle(200)
    assert not world.store._partials, seed
    world.close()


def test_chaos(tmp_path, monkeypatch):
    monkeypatch.setattr(smallfiles, "SMALL_FILE_BYTES", 2048)
    first = int(os.environ.get("SEED", "0"))
    for seed in range(first, first + ROUNDS):
        oneRun(seed, tmp_path)
