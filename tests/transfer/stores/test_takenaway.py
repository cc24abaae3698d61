"""
Somebody else removes, moves or replaces what a store works in, before any one
of its system calls: each file is taken, or refused in one line, and the next
one is taken without a restart.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path

import attrs
import pytest
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

from connpool.errors import TransferError
from connpool.transfer import LocalStore, Receipt
from connpool.transfer.stores import directories
from tests.transfer.stores.kit import BLOCK, InlineReactor, Recorded, offer

CONTENT = random.Random(1).randbytes(3 * BLOCK + 1234)
SMALL = CONTENT[:4096]
ROOT = b"\7" * 32

#: What is taken away, below the root.
THINGS = [
    "",
    ".connpool",
    ".connpool/temporary",
    ".connpool/temporary/*",
    ".connpool/partials",
    ".connpool/partials/*",
    ".connpool/partials/*/*",
    ".connpool/done",
    ".connpool/done/*",
    ".connpool/ledger",
    ".connpool/ledger/*",
    "a",
    "a/b",
]


def removed(path: Path, aside: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def moved(path: Path, aside: Path) -> None:
    path.rename(aside)


def replaced(path: Path, aside: Path) -> None:
    isDirectory, mode = path.is_dir(), path.stat().st_mode & 0o777
    path.rename(aside)
    if isDirectory:
        path.mkdir(mode)


def cleaned(path: Path, aside: Path) -> None:
    """
    As C{find -type d -empty -delete} does it.
    """
    if path.is_dir():
        for inner in sorted(path.rglob("*"), reverse=True):
            if inner.is_dir() and not any(inner.iterdir()):
                inner.rmdir()
        if not any(path.iterdir()):
            path.rmdir()


def put(store, reactor, asked):
    return reactor.wait(store.put(attrs.evolve(asked, size=len(SMALL)), SMALL, ROOT))


def stream(store, reactor, asked):
    partial = reactor.wait(store.open(attrs.evolve(asked, size=len(CONTENT))))
    if isinstance(partial, Receipt):
        return partial
    try:
        reactor.wait(partial.settled())
        for block in range(-(-len(CONTENT) // BLOCK)):
            data = CONTENT[block * BLOCK : (block + 1) * BLOCK]
            digest = hashlib.sha256(data).digest()
            if partial.digests.get(block) == digest:
                continue
            if block in partial.digests:  # no journal said what lies there
                partial.discard(block * BLOCK, block * BLOCK + len(data))
            partial.write(block * BLOCK, data)
            partial.record(block, digest)
            reactor.wait(partial.checkpoint())
        return reactor.wait(partial.commit(ROOT))
    except TransferError as e:
        reactor.wait(partial.suspend() if e.retryable else partial.abort())
        raise


def interrupted(store, reactor, asked):
    """
    The connection is lost after two blocks, and the sender comes again.
    """
    partial = reactor.wait(store.open(attrs.evolve(asked, size=len(CONTENT))))
    if not isinstance(partial, Receipt):
        for block in (0, 2):
            if block not in partial.digests:
                data = CONTENT[block * BLOCK : (block + 1) * BLOCK]
                partial.write(block * BLOCK, data)
                partial.record(block, hashlib.sha256(data).digest())
        reactor.wait(partial.suspend())
    return stream(store, reactor, asked)


def classic(store, reactor, asked):
    """
    No size, no digests, nothing to be resumed.
    """
    asked = attrs.evolve(asked, digest=None, protocol="classic")
    partial = reactor.wait(store.open(asked))
    if isinstance(partial, Receipt):
        return partial
    try:
        partial.write(0, CONTENT)
        return reactor.wait(partial.commit(None))
    except TransferError:
        reactor.wait(partial.abort())
        raise


#: how it comes, the level, what else the offer says, and its content
WAYS = {
    "put": (put, "none", {}, SMALL),
    "batch": (put, "full", {}, SMALL),
    "replacing": (put, "full", {"ifExists": "replace"}, SMALL),
    "large": (stream, "full", {"resumeKey": b"s" * 32}, CONTENT),
    "resumed": (interrupted, "none", {"resumeKey": b"s" * 32}, CONTENT),
    "classic": (classic, "full", {}, CONTENT),
}


@attrs.define(slots=False)
class Life:
    """
    One store, and what happens to its directories before call C{at}.
    """

    place: Path
    action: object
    thing: str
    at: int
    calls: int = 0
    did: bool = False
    reactor: InlineReactor = attrs.Factory(InlineReactor)

    def open(self):
        self.root = self.place / "inbox"
        shutil.rmtree(self.place, ignore_errors=True)
        self.root.mkdir(parents=True)
        self.calls = -(1 << 30)
        self.store = LocalStore(
            self.reactor,
            self.root,
            syscalls=Recorded(self.before, lazy=True),
            threads=self.reactor,
            seconds=self.reactor.seconds,
        )
        self.reactor.wait(self.store.put(offer("a/b/first", key=b"1" * 32), b"1", None))
        self.calls = 0

    def before(self, *call):
        self.calls += 1
        if self.calls == self.at:
            self.act()

    def act(self):
        found = sorted(self.root.glob(self.thing)) if self.thing else [self.root]
        for number, path in enumerate(found):
            self.action(path, self.place / f"aside-{number}")
            self.did = True

    def send(self, way, name, key):
        """
        The sender comes until the file is taken, or refused for good.
        """
        send, level, values, _ = WAYS[way]
        for _ in range(5):
            self.reactor.now += 2
            try:
                return send(
                    self.store, self.reactor, offer(name, key=key, durability=level, **values)
                )
            except TransferError as e:
                why = str(e)
                assert str(self.place) not in why
                assert "No such file" not in why
                assert "\n" not in why
        return why

    def comeBack(self):
        """
        The operator mends the root.
        """
        if (self.place / "aside-0").is_dir() and not self.thing:
            shutil.rmtree(self.root, ignore_errors=True)
            (self.place / "aside-0").rename(self.root)
        elif not self.root.is_dir():
            self.root.mkdir()


def live(life, way, monkeypatch):
    """
    @return: what is wrong, or L{None}.
    """
    monkeypatch.setattr(directories, "monotonic", life.reactor.seconds)
    life.open()
    content = WAYS[way][3]
    receipt = life.send(way, "a/b/x.bin", b"2" * 32)
    life.counted = life.calls
    if not isinstance(receipt, Receipt):
        if life.thing:
            return f"refused for ever: {receipt}"
        life.reactor.now += 2
        if life.store.trouble() is None:
            return f"refused and ready: {receipt}"
        assert str(life.root) in life.store.trouble()
    life.comeBack()
    receipt = life.send(way, "a/b/y.bin", b"3" * 32)
    if not isinstance(receipt, Receipt):
        return f"the next one was refused: {receipt}"
    life.reactor.now += 2
    if life.store.trouble() is not None:
        return f"not ready: {life.store.trouble()}"
    there = life.root / receipt.name
    if not there.is_file() or there.read_bytes() != content:
        return f"{receipt.name} was acknowledged, and is not there"
    # content of unknown size is not known to be the same before it has come
    again = life.send(way, "a/b/y.bin", b"3" * 32) if way != "classic" else receipt
    if again != receipt:
        return f"another receipt: {again}"
    wrong = [
        path
        for path in life.place.rglob("*.bin")
        if path.is_file() and path.read_bytes() != content
    ]
    if wrong:
        return f"wrong content: {wrong}"
    return None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("action", [removed, moved, replaced, cleaned])
@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_takenAwayBeforeAnyCall(tmp_path, monkeypatch, way, action, every):
    untouched = Life(tmp_path / "place", None, "", 0)
    assert live(untouched, way, monkeypatch) is None
    untouched.reactor.wait(untouched.store.close())
    calls = untouched.counted
    before = len(os.listdir("/proc/self/fd"))
    broken, acted = [], 0
    for number, (thing, at) in enumerate((t, a) for t in THINGS for a in range(1, calls)):
        if number % every:
            continue
        life = Life(tmp_path / "place", action, thing, at)
        try:
            wrong = live(life, way, monkeypatch)
        except AssertionError as e:
            wrong = f"{e}"
        except OSError as e:
            wrong = f"not translated: {e!r}"
        finally:
            life.reactor.wait(life.store.close())
        acted += life.did
        if wrong is not None:
            broken.append((thing, at, wrong))
    assert broken == []
    assert acted
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("action", [removed, moved, replaced])
@pytest.mark.parametrize("thing", [".connpool", ".connpool/done", ".connpool/done/hook"])
def test_theProgramHearsOfWhatComesAfterwards(tmp_path, monkeypatch, thing, action):
    life = Life(tmp_path / "place", action, thing, 0)
    monkeypatch.setattr(directories, "monotonic", life.reactor.seconds)
    life.open()
    outbox = life.store.receivedOutbox()
    life.send("put", "a/before", b"2" * 32)
    position, receipt = outbox.take()
    assert receipt.name == "a/before"
    life.act()
    life.reactor.now += 2
    assert outbox.take() is None
    outbox.told(position)
    for name in ("a/after", "a/last"):
        life.send("batch", name, hashlib.sha256(name.encode()).digest())
        position, receipt = outbox.take()
        assert receipt.name == name
        outbox.told(position)
    outbox.close()
    again = life.store.receivedOutbox()
    assert again.take() is None
    again.close()
    life.reactor.wait(life.store.close())


def test_whatWasTakenAwayIsSaidOnce(tmp_path, monkeypatch):
    said = []

    def heard(event):
        if event["log_level"] is LogLevel.warn:
            said.append(formatEvent(event))

    life = Life(tmp_path / "place", removed, ".connpool", 0)
    monkeypatch.setattr(directories, "monotonic", life.reactor.seconds)
    life.open()
    globalLogPublisher.addObserver(heard)
    life.act()
    for name in "xyz":
        life.send("large", f"a/{name}", name.encode() * 32)
    globalLogPublisher.removeObserver(heard)
    assert len(said) == 1
    assert ".connpool" in said[0]
    assert str(life.root) in said[0]
    life.reactor.wait(life.store.close())
