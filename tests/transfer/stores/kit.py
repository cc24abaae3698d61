"""
What the tests of stores share.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from connpool.transfer import LocalStore, Offer, Receipt, RelativeName
from connpool.transfer.records import SmallFile
from connpool.transfer.stores.commit import receiptOr
from connpool.transfer.stores.directories import Directories, Followed
from connpool.transfer.syscalls import Syscalls
from tests.helpers.waiting import bounded, successResultOf

BLOCK = 1 << 16


def followed(syscalls: Syscalls, fd: int) -> Followed:
    """
    The directory of C{fd} for those who follow theirs.
    """
    return Followed(Directories(syscalls, fd, 0o700), ())


def offer(name: str = "report.txt", **values: Any) -> Offer:
    """
    An offer as a protocol would make it.
    """
    values.setdefault("transferId", os.urandom(16).hex())
    values.setdefault("digest", "sha256")
    values.setdefault("blockSize", BLOCK)
    return Offer(name=RelativeName.parse(name), **values)


def settled(result: Any) -> Deferred[Any]:
    """
    What C{put} gave, whether at once or later.
    """
    return result if isinstance(result, Deferred) else succeed(result)


def stored(store: LocalStore, asked: Offer, data: bytes, root: bytes | None = None) -> Receipt:
    """
    Store a small file here and now, in whichever thread this is.
    """
    return receiptOr(*store.parts.commit.batch([SmallFile(asked, data, root)]))


def receipt(**values: Any) -> Receipt:
    """
    The receipt of a small file.
    """
    usual: dict[str, Any] = {
        "transferId": "0" * 32,
        "name": "a",
        "wanted": "a",
        "size": 1,
        "status": "stored",
        "durability": "full",
        "filesystem": "ext4",
        "integrity": "verified",
        "digest": "sha256",
        "root": "00",
        "protocol": "native",
        "principal": "anonymous",
        "finished": 0.0,
    }
    return Receipt(**usual | values)


async def storeBy(way: str, store: Any, asked: Offer, content: bytes) -> Receipt:
    """
    Store a file at once (C{put}), or in blocks.
    """
    if way == "put":
        return await bounded(settled(store.put(asked, content, None)))
    partial = await bounded(store.open(asked))
    await fill(partial, content)
    try:
        return await bounded(partial.commit(None))
    finally:
        await bounded(partial.abort())


async def fill(partial: Any, content: bytes, *, block: int = BLOCK) -> None:
    """
    Write what is missing of C{content}, recording the digest of each block.
    """
    for number in range(-(-len(content) // block)):
        start = number * block
        data = content[start : start + block]
        if number in partial.digests:
            continue
        waiting = partial.write(start, memoryview(data))
        if waiting is not None:
            await waiting
        partial.record(number, hashlib.sha256(data).digest())


def visible(root: Path) -> dict[str, bytes]:
    """
    Every file below C{root} that is not the store's own.
    """
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink() and ".connpool" not in path.parts
    }


#: What L{Recorded} sees: every attribute of the layer that is a system call.
CALLS = [
    name
    for name, value in vars(Syscalls).items()
    if isinstance(value, staticmethod) and not name.startswith("_")
]


class Recorded(Syscalls):
    """
    The layer with a look at every call.

    @ivar log: name, arguments and result of each.
    @ivar before: called with name, arguments and keywords before each; may
        raise.
    @param lazy: only record syncs: for tests that cut no power.
    """

    def __init__(self, before: Callable[..., Any] | None = None, *, lazy: bool = False) -> None:
        self.log: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before = before
        for name in CALLS:
            call = getattr(Syscalls, name)
            if lazy and name in {"fsync", "fdatasync", "syncfs"}:
                call = os.fstat  # fails for what is no descriptor
            setattr(self, name, self._wrap(name, call))

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            if self.before is not None:
                self.before(name, arguments, keywords)
            result = call(*arguments, **keywords)
            self.log.append((name, arguments, keywords, result))
            return result

        return wrapped

    def names(self) -> list[str]:
        """
        What was called, in order.
        """
        return [name for name, *_ in self.log]


class _Call:
    def __init__(self, later: list[Any], f: Callable[[], Any]) -> None:
        self._later = later
        self.run = f

    def cancel(self) -> None:
        self._later.remove(self)


class InlineReactor:
    """
    A reactor and thread pool that do everything at once: one thread, no
    selector, so that a test decides between any two system calls.
    """

    def __init__(self) -> None:
        self._later: list[_Call] = []
        self.now = 0.0

    def seconds(self) -> float:
        return self.now

    def callLater(self, delay: float, f: Callable[..., Any], *args: Any) -> _Call:
        call = _Call(self._later, lambda: f(*args))
        self._later.append(call)
        return call

    def callFromThread(self, f: Callable[..., Any], *args: Any) -> None:
        f(*args)

    def addSystemEventTrigger(self, *details: Any) -> None:
        pass

    def removeSystemEventTrigger(self, trigger: Any) -> None:
        pass

    def callInThreadWithCallback(
        self, onResult: Callable[..., Any], f: Callable[..., Any], *args: Any, **kw: Any
    ) -> None:
        try:
            result = f(*args, **kw)
        except BaseException:
            onResult(False, Failure())
        else:
            onResult(True, result)

    def wait(self, d: Any) -> Any:
        """
        @return: what C{d} fires with, after everything that was put off.
        """
        while self._later:
            self._later.pop(0).run()
        return successResultOf(settled(d))
