"""
Power cuts on real file systems: an image on a loop device is shut down without
flushing its log (C{FS_IOC_SHUTDOWN}) at a chosen system call, unmounted and
mounted again, and the receiver and the sender come back.

C{kill -9} proves nothing about this: the page cache survives it.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.transfer.stores.deaths import SCENARIOS, forked, judge, life, opened

TOP = Path(__file__).parents[3]
#: linux/fs.h; the argument says: not even the log.
FS_IOC_SHUTDOWN = 0x8004587D
NOLOGFLUSH = 2

SIZES = {"ext4": "32M", "xfs": "320M"}


class Image:
    """
    A file system in a file.
    """

    def __init__(self, kind: str, directory: Path) -> None:
        self.file = directory / f"{kind}.img"
        self.at = directory / kind
        self.at.mkdir()
        if os.geteuid() != 0:
            pytest.skip("only root can mount images; the model carries the proof")
        if shutil.which(f"mkfs.{kind}") is None:
            pytest.skip(f"mkfs.{kind} is not installed; the model carries the proof")
        subprocess.run(["truncate", "-s", SIZES[kind], self.file], check=True)
        subprocess.run([f"mkfs.{kind}", "-q", self.file], check=True)
        run = self.mount()
        if run.returncode:
            pytest.skip(f"cannot mount images here ({run.stderr.strip()}); the model carries it")

    def mount(self):
        return subprocess.run(
            ["mount", "-o", "loop", self.file, self.at], capture_output=True, text=True, check=False
        )

    def unmount(self) -> None:
        subprocess.run(["umount", self.at], check=True)


def cutter(where: Path, at: int):
    """
    Cut the power before the call number C{at}; nothing after it reaches the disk.
    """
    calls = iter(range(1 << 30))

    def before(name, arguments, keywords):
        if next(calls) == at:
            fd = os.open(where, os.O_RDONLY)
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, NOLOGFLUSH.to_bytes(4, sys.byteorder))
            os._exit(9)

    return before


def cuts(kind: str, directory: Path, count: int, seed: int) -> list[dict]:
    """
    @return: what was broken by C{count} cuts, spread over scenarios and calls.
    """
    image = Image(kind, directory)
    acknowledged = directory / "acknowledged"
    chance = random.Random(seed)
    broken = []
    try:
        places = []
        for number, scenario in enumerate(SCENARIOS):
            root = fresh(image, scenario, f"dry{number}")
            calls = len(life(scenario, "full", root, acknowledged, None, lazy=False).log)
            acknowledged.unlink()
            places += [(scenario, at) for at in range(calls + 1)]
        for turn, (scenario, at) in enumerate(chance.sample(places, min(count, len(places)))):
            root = fresh(image, scenario, f"root{turn}")
            subprocess.run(["sync", "-f", image.at], check=True)
            cut = cutter(image.at, at)
            forked(partial(life, scenario, "full", root, acknowledged, cut, lazy=False))
            image.unmount()
            assert image.mount().returncode == 0
            problem = judge(scenario, "full", root, acknowledged)
            if problem is not None:
                broken.append({"scenario": scenario.name, "at": at, "problem": problem})
            acknowledged.unlink(missing_ok=True)
            shutil.rmtree(root)
    finally:
        image.unmount()
    return broken


def fresh(image: Image, scenario, name: str) -> Path:
    root = image.at / name
    root.mkdir()
    store, reactor, _ = opened(root, lazy=False, apart=scenario.apart)
    scenario.prepare(store, reactor, scenario.offer("full"))
    reactor.wait(store.close())
    return root


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", list(SIZES))
def test_powerCuts(tmp_path, kind):
    if os.geteuid() != 0:
        pytest.skip("only root can mount images; the model carries the proof")
    count = os.environ.get("CONNPOOL_CUTS", "40")
    # a process of its own: it forks; and mounts of its own: whoever makes a namespace beside it
    # would keep the file system that was shut down, and mounting would find that one again
    program = [sys.executable, "-m", "tests.transfer.stores.test_powercut"]
    run = subprocess.run(
        ["unshare", "-m", *program, kind, str(tmp_path), count],
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    if run.returncode == 77:
        pytest.skip(run.stdout.strip())
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout) == []


if __name__ == "__main__":
    try:
        print(json.dumps(cuts(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), 4)))
    except pytest.skip.Exception as skipped:
        print(skipped)
        sys.exit(77)
