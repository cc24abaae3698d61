"""
What the tests of partials share.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from connpool.transfer import LocalStore
from tests.transfer.stores.kit import InlineReactor, Recorded, fill

SECRET = b"s" * 32
KEY = b"k" * 32


def inline(
    root: Path, before: Any = None, clock: Any = None, **values: Any
) -> tuple[LocalStore, Any, Recorded]:
    """
    A store without threads, its reactor, which is its clock too, and its calls.
    """
    clock = clock or InlineReactor()
    syscalls = Recorded(before, lazy=True)
    store = LocalStore(
        clock, root, syscalls=syscalls, threads=clock, seconds=clock.seconds, **values
    )
    return store, clock, syscalls


def filled(clock: Any, partial: Any, content: bytes) -> None:
    """
    Write what is missing of C{content}.
    """
    clock.wait(Deferred.fromCoroutine(fill(partial, content)))


def parts(root: Path) -> list[Path]:
    return sorted(path for path in root.glob(".connpool/partials/*/*") if not path.suffix)


def journals(root: Path) -> list[Path]:
    return sorted(root.glob(".connpool/partials/*/*.journal"))


def target(fd: int) -> str:
    """
    What a descriptor was opened as.
    """
    return os.readlink(f"/proc/self/fd/{fd}")


def ofJournal(arguments: Any) -> bool:
    return target(arguments[0]).endswith(".journal")


def ofReceipts(arguments: Any) -> bool:
    return "/done/" in target(arguments[0])


def failing(
    call: str, number: int, times: int = 1, when: Callable[[Any], bool] = lambda arguments: True
) -> Callable[..., None]:
    """
    Let C{times} calls that C{when} chooses by their arguments fail.
    """
    left = [times]

    def before(name: str, arguments: Any, keywords: Any) -> None:
        if name == call and left[0] and when(arguments):
            left[0] -= 1
            raise OSError(number, os.strerror(number))

    return before


def killed(partial: Any) -> None:
    """
    Let go of what the kernel would let go of.
    """
    os.close(partial.slot.fd)
    os.close(partial.slot.journalFd)
