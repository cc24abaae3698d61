"""
A program that dies at a chosen system call of a store, and looks at what is left.

C{python -m tests.transfer.stores.deaths DIRECTORY KILLS SEED}: for each
scenario and level, processes are forked that kill themselves at chosen calls
(C{SIGKILL}: before the call, or in the middle of a write); after each another
process opens the same root as the restarted receiver and the sender comes
again.  Prints one line of JSON for every death that broke a promise, and a last
line with how many there were.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from connpool.transfer import LocalStore, Offer, Receipt, RelativeName
from connpool.transfer.records import SmallFile
from connpool.transfer.stores.commit import receiptOr
from connpool.transfer.stores.syncing import SyncChoice
from tests.transfer.stores.kit import BLOCK, InlineReactor, Recorded, offer, visible

CONTENT = random.Random(1).randbytes(5 * BLOCK + 1234)
SMALL = CONTENT[:4096]
ROOT = b"\7" * 32


@attrs.frozen
class Scenario:
    """
    @ivar prepare: what was there before.
    @ivar send: what the sender does until it has its receipt, which it
        returns; repeated after the death.
    @ivar apart: every directory is a mount of its own.
    """

    name: str
    content: bytes
    prepare: Callable[[LocalStore, InlineReactor, Offer], Any]
    send: Callable[[LocalStore, InlineReactor, Offer], Receipt]
    values: dict[str, Any] = attrs.field(factory=dict)
    apart: bool = False

    def offer(self, level: str) -> Offer:
        return offer(
            "a/b/x.bin",
            size=len(self.content),
            key=b"k" * 32,
            durability=level,
            modified=10**18,
            **self.values,
        )


def nothing(store: LocalStore, reactor: InlineReactor, asked: Offer) -> None:
    pass


def taken(store: LocalStore, reactor: InlineReactor, asked: Offer) -> None:
    """
    Another file has the name.
    """
    other = attrs.evolve(asked, key=None, resumeKey=None, size=5)
    reactor.wait(store.put(other, b"other", None))


def neighbour(store: LocalStore, reactor: InlineReactor, asked: Offer) -> None:
    """
    Another file has the name in capitals.
    """
    other = attrs.evolve(asked, key=None, name=RelativeName.parse("a/b/X.BIN"))
    reactor.wait(store.put(other, b"other", None))


def half(store: LocalStore, reactor: InlineReactor, asked: Offer) -> None:
    """
    Two blocks came on an earlier connection.
    """
    partial = reactor.wait(store.open(asked))
    for block in (0, 3):
        data = CONTENT[block * BLOCK : (block + 1) * BLOCK]
        partial.write(block * BLOCK, data)
        partial.record(block, hashlib.sha256(data).digest())
    reactor.wait(partial.suspend())


def unreadable(store: LocalStore, reactor: InlineReactor, asked: Offer) -> None:
    """
    As L{half}, and another version wrote the journal.
    """
    half(store, reactor, asked)
    for path in Path(store._path).glob(".connpool/partials/*/*.journal"):
        path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))


def put(store: LocalStore, reactor: InlineReactor, asked: Offer) -> Receipt:
    return reactor.wait(store.put(asked, SMALL, ROOT))


def batch(store: LocalStore, reactor: InlineReactor, asked: Offer) -> Receipt:
    """
    Two files at once.
    """
    second = attrs.evolve(asked, name=RelativeName.parse("a/c/y"), key=b"y" * 32, size=5)
    files = [SmallFile(asked, SMALL, ROOT), SmallFile(second, b"other", ROOT)]
    stored = store.putAll(files)
    receipts = reactor.wait(stored) if isinstance(stored, Deferred) else stored
    assert receiptOr(receipts[1]).name == "a/c/y"
    return receiptOr(receipts[0])


def many(store: LocalStore, reactor: InlineReactor, asked: Offer) -> Receipt:
    """
    Files in so many directories that all of them are synced together.
    """
    others = [
        attrs.evolve(asked, name=RelativeName.parse(f"a/{at}/y"), key=bytes([at]) * 32, size=5)
        for at in range(SyncChoice.LEAST_FILES)
    ]
    files = [SmallFile(asked, SMALL, ROOT), *(SmallFile(other, b"other", ROOT) for other in others)]
    stored = store.putAll(files)
    receipts = reactor.wait(stored) if isinstance(stored, Deferred) else stored
    assert {receiptOr(each).name for each in receipts[1:]} == {str(each.name) for each in others}
    return receiptOr(receipts[0])


def stream(store: LocalStore, reactor: InlineReactor, asked: Offer) -> Receipt:
    """
    Block by block, with a checkpoint after every second one.
    """
    partial = reactor.wait(store.open(asked))
    if isinstance(partial, Receipt):
        return partial
    reactor.wait(partial.settled())
    for block in range(-(-len(CONTENT) // BLOCK)):
        start = block * BLOCK
        data = CONTENT[start : start + BLOCK]
        digest = hashlib.sha256(data).digest()
        if partial.digests.get(block) == digest:
            continue
        if block in partial.digests:
            partial.discard(start, start + BLOCK)
        partial.write(start, data)
        partial.record(block, digest)
        if block % 2:
            reactor.wait(partial.checkpoint())
    return reactor.wait(partial.commit(ROOT))


def upload(store: LocalStore, reactor: InlineReactor, asked: Offer) -> Receipt:
    """
    In order, in steps that end within blocks; the sender is told after each how much is safe,
    and may have forgotten that.  The size is declared in the middle.
    """
    told = Path(store._path).with_name("told")
    found = reactor.wait(store.find("anonymous", asked.resumeKey, asked.key))
    if isinstance(found, Receipt):
        told.unlink(missing_ok=True)
        return found
    partial = reactor.wait(store.open(found or attrs.evolve(asked, size=None)))
    assert not isinstance(partial, Receipt)
    at = partial.held.end
    assert not reactor.wait(partial.settled())
    # a power cut may leave the note empty: it was never synced
    known = int(told.read_text() or 0) if told.exists() else 0
    assert at >= known, "bytes were lost that were told"
    assert reactor.wait(partial.read(0, at)) == CONTENT[:at]
    while at < len(CONTENT):
        if at > len(CONTENT) // 2 and partial.offer.size is None:
            partial.declare(asked)
        end = min(at + BLOCK // 2 + 77, len(CONTENT))
        partial.write(at, CONTENT[at:end])
        for block in range(at // BLOCK, -(-end // BLOCK)):
            last = min(end, (block + 1) * BLOCK)
            digest = hashlib.sha256(CONTENT[block * BLOCK : last]).digest()
            partial.record(block, digest, last)
        reactor.wait(partial.checkpoint())
        told.write_text(str(end))
        at = end
    receipt = reactor.wait(partial.commit(ROOT))
    told.unlink(missing_ok=True)
    return receipt


#: Files that come along.
BESIDE = {batch: 1, many: SyncChoice.LEAST_FILES}
RESUMABLE = {"resumeKey": b"s" * 32}
SCENARIOS = [
    Scenario("small", SMALL, nothing, put),
    Scenario("small-conflict", SMALL, taken, put),
    Scenario("small-neighbour", SMALL, neighbour, put),
    Scenario("small-replace", SMALL, taken, put, {"ifExists": "replace"}),
    Scenario("batch", SMALL, nothing, batch),
    Scenario("batch-many", SMALL, nothing, many),
    Scenario("batch-conflict", SMALL, neighbour, batch),
    Scenario("large", CONTENT, nothing, stream, RESUMABLE),
    Scenario("large-conflict", CONTENT, taken, stream, RESUMABLE),
    Scenario("large-replace", CONTENT, taken, stream, {**RESUMABLE, "ifExists": "replace"}),
    Scenario("resumed", CONTENT, half, stream, RESUMABLE),
    Scenario("upload", CONTENT, nothing, upload, RESUMABLE),
    Scenario("upload-conflict", CONTENT, taken, upload, RESUMABLE),
    Scenario("unreadable", CONTENT, unreadable, stream, RESUMABLE),
    Scenario("small-elsewhere", SMALL, nothing, put, apart=True),
    Scenario("large-elsewhere", CONTENT, nothing, stream, RESUMABLE, apart=True),
]


def published(root: Path) -> dict[str, bytes]:
    """
    Every file that a consumer would look at.
    """
    return {
        name: content for name, content in visible(root).items() if "/.connpool-" not in f"/{name}"
    }


def hidden(root: Path) -> list[str]:
    """
    What a receiver made for a moment beside them.
    """
    return sorted({*visible(root)} - {*published(root)})


def forked(body: Callable[[], Any]) -> int:
    """
    @return: the wait status of a process that ran C{body}.
    """
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            body()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


def opened(
    root: Path, before: Any = None, *, lazy: bool = True, apart: bool = False
) -> tuple[LocalStore, InlineReactor, Recorded]:
    """
    A store as a process has it that just started.

    @param lazy: do not sync: the page cache survives C{SIGKILL}.
    @param apart: every directory is a mount of its own.
    """

    def both(name: str, arguments: Any, keywords: Any) -> None:
        if before is not None:
            before(name, arguments, keywords)
        if "src_dir_fd" in keywords and keywords["src_dir_fd"] != keywords["dst_dir_fd"]:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    reactor = InlineReactor()
    syscalls = Recorded(both if apart else before, lazy=lazy)
    store = LocalStore(
        reactor,
        root,
        syscalls=syscalls,
        threads=reactor,
        now=lambda: time.time() + reactor.now,
        seconds=reactor.seconds,
    )
    return store, reactor, syscalls


def prepared(scenario: Scenario, level: str, root: Path) -> Path:
    """
    C{root}, new, as the scenario begins.
    """
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    store, reactor, _ = opened(root)
    scenario.prepare(store, reactor, scenario.offer(level))
    reactor.wait(store.close())
    return root


def life(
    scenario: Scenario,
    level: str,
    root: Path,
    acknowledged: Path,
    before: Any,
    *,
    lazy: bool = True,
) -> Recorded:
    """
    One process, from its start to the acknowledgement.
    """
    store, reactor, syscalls = opened(root, before, lazy=lazy, apart=scenario.apart)
    receipt = scenario.send(store, reactor, scenario.offer(level))
    acknowledged.write_text(receipt.name)
    reactor.wait(store.close())
    return syscalls


def killer(at: int, torn: bool) -> Callable[..., None]:
    """
    @param at: the number of the call to die at.
    @param torn: if that call writes, let half of it happen.
    """
    calls = iter(range(1 << 30))

    def before(name: str, arguments: Any, keywords: Any) -> None:
        if next(calls) == at:
            if torn and name in {"write", "pwrite"}:
                fd, data, *where = arguments
                half = bytes(data)[: len(data) // 2]
                os.pwrite(fd, half, *where) if where else os.write(fd, half)
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def judge(scenario: Scenario, level: str, root: Path, acknowledged: Path) -> str | None:
    """
    @return: the promise that was broken, or L{None}.
    """
    others = (scenario.prepare in {taken, neighbour}) + BESIDE.get(scenario.send, 0)
    before = published(root)
    for name, content in before.items():
        if content not in {scenario.content, b"other"}:
            return f"{name} has wrong content"
    there = [name for name, content in before.items() if content == scenario.content]
    if len(there) > 1:
        return f"two copies: {there}"
    if acknowledged.exists() and acknowledged.read_text() not in there:
        return "acknowledged and not there"
    # the receiver comes up again, and so does the sender
    store, reactor, _ = opened(root, apart=scenario.apart)
    receipt = scenario.send(store, reactor, scenario.offer(level))
    after = published(root)
    there = [name for name, content in after.items() if content == scenario.content]
    if there != [receipt.name]:
        return f"{receipt.name} was acknowledged, {there} are there"
    wanted = 1 if scenario.values.get("ifExists") == "replace" else 1 + others
    if len(after) != wanted:
        return f"left: {sorted(after)}"
    if reactor.wait(store.partials()):
        return "a partial was left"
    lookLater(store, reactor)
    if hidden(root):
        return f"left for ever: {hidden(root)}"
    reactor.wait(store.close())
    return None


def lookLater(store: LocalStore, reactor: InlineReactor) -> None:
    """
    Let the receiver run for two days.
    """
    for _ in range(2):
        reactor.now += 86400
        reactor.wait(store.reap())


def deaths(root: Path, kills: int, seed: int) -> tuple[int, list[dict[str, Any]]]:
    """
    Die at C{kills} calls, spread over the scenarios.

    @return: how many died, and what they broke.
    """
    chance = random.Random(seed)
    broken: list[dict[str, Any]] = []
    places: list[tuple[Scenario, str, int, bool]] = []
    acknowledged = root / "acknowledged"
    for scenario in SCENARIOS:
        for level in ("none", "full"):
            where = prepared(scenario, level, root / "root")
            calls = len(life(scenario, level, where, acknowledged, None).log)
            acknowledged.unlink()
            places += [(scenario, level, at, False) for at in range(calls)]
            places += [(scenario, level, at, True) for at in range(calls)]
    if kills < len(places):
        places = chance.sample(places, kills)
    else:
        places += [chance.choice(places) for _ in range(kills - len(places))]
    died = 0
    for scenario, level, at, torn in places:
        where = prepared(scenario, level, root / "root")
        status = forked(partial(life, scenario, level, where, acknowledged, killer(at, torn)))
        died += os.WIFSIGNALED(status)
        problem = judge(scenario, level, where, acknowledged)
        acknowledged.unlink(missing_ok=True)
        if problem is not None or not os.WIFSIGNALED(status):
            broken.append(
                {
                    "scenario": scenario.name,
                    "level": level,
                    "at": at,
                    "torn": torn,
                    "problem": problem or f"did not die: {status}",
                }
            )
    return died, broken


if __name__ == "__main__":
    died, broken = deaths(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    for each in broken:
        print(json.dumps(each))
    print(json.dumps({"died": died, "broken": len(broken)}))
