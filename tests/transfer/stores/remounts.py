"""
A program that mounts file systems over what a store works in.

C{unshare -m python -m tests.transfer.stores.remounts DIRECTORY EVERY}: as
L{tests.transfer.stores.test_takenaway}, at every C{EVERY}th place.  Prints one
line of JSON for each promise that was broken, and a last line with how often
something was mounted.  Exits with 77 where mounting is not permitted.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

import pytest

from tests.transfer.stores.test_takenaway import THINGS, WAYS, Life, live

_libc = ctypes.CDLL(None, use_errno=True)
_LAZILY = 2


def mount(path: Path) -> None:
    """
    Mount an empty file system in memory over C{path}.
    """
    if _libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, b"mode=0700"):
        raise OSError(ctypes.get_errno(), f"cannot mount over {path}")


def unmount(path: Path) -> None:
    _libc.umount2(os.fsencode(path), _LAZILY)


class Mounted(Life):
    """
    A store with something mounted over C{thing} before call C{at}.
    """

    def open(self):
        self.over = []
        super().open()

    def act(self):
        for path in [self.root] if not self.thing else sorted(self.root.glob(self.thing)):
            if path.is_dir():
                mount(path)
                self.over.append(path)
                self.did = True

    def comeBack(self):
        if not self.thing:
            self.unmount()

    def unmount(self):
        while self.over:
            unmount(self.over.pop())


def main(place: Path, every: int) -> None:
    place.mkdir(exist_ok=True)
    try:
        mount(place)
    except PermissionError:
        sys.exit(77)
    unmount(place)
    did = 0
    patch = pytest.MonkeyPatch()
    for way in WAYS:
        untouched = Mounted(place / "place", None, "", 0)
        assert live(untouched, way, patch) is None
        untouched.reactor.wait(untouched.store.close())
        places = [(thing, at) for thing in THINGS for at in range(1, untouched.counted)]
        for thing, at in places[::every]:
            life = Mounted(place / "place", None, thing, at)
            try:
                wrong = live(life, way, patch)
            except (AssertionError, OSError) as e:
                wrong = repr(e)
            finally:
                life.reactor.wait(life.store.close())
                life.unmount()
            did += life.did
            if wrong is not None:
                print(json.dumps([way, thing, at, wrong]))
    print(json.dumps(did))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
