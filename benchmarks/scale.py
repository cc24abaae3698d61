"""
C{python -m benchmarks scale}: how the S3 store grows, in virtual time.

The cores of the store (who asks the engine for what, and when) run as they do in receivers;
the engine, the network and the clock are simulated.  So requests for each file, contention on
names and the time until uploads go on after their receivers died follow from the real
decisions; what an engine can do in a second is assumed, and said in the table.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from connpool.errors import TransferError, Unavailable
from connpool.transfer import RelativeName
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.s3.calls import Conflict, Done, PutPart, Together
from connpool.transfer.stores.s3.layout import Layout, newToken
from connpool.transfer.stores.s3.lifecycle import Lifecycle
from connpool.transfer.stores.s3.naming import Moved, Names
from connpool.transfer.stores.s3.uploadlog import Part
from tests.transfer.stores.s3.engine import MemoryEngine

#: Seconds that the engine takes for a request, and for 8 MiB more.
ANSWER_SECONDS, PART_SECONDS = 0.02, 0.1
#: Seconds of the engine's capacity that may be used at once.
BURST_SECONDS = 0.25
#: Calls of one receiver under way at once.
CONNECTIONS = 64
#: Seconds until a receiver tries again what was throttled: from, to, and in all.
FIRST_WAIT, LAST_WAIT, PATIENCE = 0.1, 10.0, 120.0
#: Seconds in which a sender whose receiver died has noticed, and is at another one.
RECONNECT_SECONDS = (1.0, 3.0)
PART = b"x"
#: Parts of the files in the table that is computed from a run.
PARTS = (1, 13, 128, 1280)
#: Dollars for 1,000 requests that write, and that read, as AWS asks in its first region.
WRITE_DOLLARS, READ_DOLLARS = 0.005, 0.0004
READS = {"Get", "Head"}
FREE = {"Delete", "Abort"}


@attrs.frozen
class Sleep:
    """
    Awaited in a sender: so many seconds pass.
    """

    seconds: float

    def __await__(self) -> Generator[Any, Any, None]:
        yield self


class Dead(Exception):
    """
    The receiver of a sender died.
    """


@attrs.define(eq=False)
class Receiver:
    """
    A receiver: its cores, and its connections to the engine.
    """

    names: Names
    lifecycle: Lifecycle
    free: int = CONNECTIONS
    waiting: list[Callable[[], None]] = attrs.field(factory=list)
    alive: bool = True


@attrs.define(eq=False)
class Sender:
    """
    A sender of one file.

    @ivar orphaned: when its receiver died; L{None} if none did.
    @ivar wentOn: when the first part after that was in the log.
    """

    name: str
    key: bytes
    receiver: Receiver
    core: Coroutine[Any, Any, Receipt] | None = None
    orphaned: float | None = None
    wentOn: float | None = None
    begun: float = 0.0
    tries: int = 0
    moved: int = 0
    receipt: Receipt | None = None


class Simulation:
    """
    Receivers, senders and an engine.

    @param capacity: requests that the engine takes in a second; above it throttles.
    @param parts: of each file.
    @param rate: seconds between two parts of one sender.
    @param names: different names that the files have.
    @param dead: share of the receivers that die, all at once.
    """

    def __init__(
        self,
        receivers: int,
        uploads: int,
        capacity: float,
        *,
        parts: int,
        rate: float,
        names: int,
        dead: float,
        seed: int = 1,
    ) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.engine = MemoryEngine()
        self._capacity = capacity
        self._tokens = capacity * BURST_SECONDS
        self._filled = 0.0
        self.requests: Counter[str] = Counter()
        self.throttled = self.conflicts = self.unavailable = 0
        self._parts = parts
        self._rate = rate
        self._layout = Layout("in/")
        self.receivers = [self._receiver() for _ in range(receivers)]
        self.senders = [
            Sender(f"d{n % names % 100}/f{n % names}", b"%032d" % n, self._pick())
            for n in range(uploads)
        ]
        # all are under way, and in the middle of their files on average, when some die
        for sender in self.senders:
            self._at(self.random.uniform(0, parts * rate), lambda s=sender: self._send(s))
        self._dead = int(dead * receivers)
        if self._dead:
            self._at(parts * rate, self._die)

    def run(self) -> None:
        """
        Let everything happen.
        """
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            self.engine.now = 1e6 + self.now
            event()

    def _at(self, delay: float, event: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, event))

    def _receiver(self) -> Receiver:
        names = Names(self._layout, lambda: self.now)
        return Receiver(names, Lifecycle(names))

    def _pick(self) -> Receiver:
        return self.random.choice([each for each in self.receivers if each.alive])

    def _die(self) -> None:
        for receiver in self.receivers[: self._dead]:
            receiver.alive = False
        for sender in self.senders:
            if sender.core is not None and not sender.receiver.alive:
                sender.core.close()
                sender.core = None
                sender.orphaned = self.now
                self._at(self.random.uniform(*RECONNECT_SECONDS), lambda s=sender: self._send(s))

    # -- senders

    def _send(self, sender: Sender) -> None:
        if sender.receipt is not None:
            return
        sender.tries += 1
        sender.begun = sender.begun or self.now
        if not sender.receiver.alive:
            sender.receiver = self._pick()
        sender.core = core = self._upload(sender, sender.receiver)
        self._step(sender, core, None, None)

    def _step(
        self,
        sender: Sender,
        core: Coroutine[Any, Any, Receipt],
        answer: Any,
        error: BaseException | None,
    ) -> None:
        if sender.core is not core:
            return  # its receiver died
        try:
            asked = core.send(answer) if error is None else core.throw(error)
        except StopIteration as stopped:
            sender.receipt, sender.core = stopped.value, None
            return
        except TransferError as why:
            sender.moved += isinstance(why, Moved)
            sender.core = None
            self._at(self.random.uniform(1, 5), lambda: self._send(sender))
            return
        if isinstance(asked, Sleep):
            self._at(asked.seconds, lambda: self._step(sender, core, None, None))
            return
        if isinstance(asked, Deferred):
            # another upload of the same receiver makes this call already
            asked.addBoth(lambda _: self._at(0, lambda: self._step(sender, core, None, None)))
            return
        calls = asked.calls if isinstance(asked, Together) else (asked,)
        answers: list[Any] = [None] * len(calls)
        left = [len(calls)]

        def done(index: int, found: Any, why: BaseException | None) -> None:
            answers[index] = found
            left[0] -= 1
            if why is not None:
                left[0] = -1
                self._step(sender, core, None, why)
            elif left[0] == 0:
                several = isinstance(asked, Together)
                self._step(sender, core, answers if several else answers[0], None)

        if not calls:
            self._at(0, lambda: self._step(sender, core, [], None))
        for index, call in enumerate(calls):
            self._perform(sender.receiver, call, lambda f, w, i=index: done(i, f, w))

    async def _upload(self, sender: Sender, receiver: Receiver) -> Receipt:
        size = self._parts
        offer = Offer(
            RelativeName.parse(sender.name),
            newToken(),
            size,
            key=sender.key,
            resumeKey=sender.key,
            digest="blake3",
        )
        earlier = await receiver.names.earlier(offer)
        if earlier is not None:
            return earlier
        pointer = self._layout.partial(offer.principal, "", sender.key)
        lifecycle = receiver.lifecycle
        upload, seen = await lifecycle.resume(pointer)
        for number in range(1, self._parts + 1):
            if upload is not None and (number in upload.parts or upload.commit is not None):
                continue
            await Sleep(self._rate * self.random.uniform(0.8, 1.2))
            if upload is None:
                upload = await lifecycle.begin(offer, newToken(), 1, pointer, seen, parts=True)
            begin = upload.begin
            body = PART + b"%d" % number
            key = self._layout.file(begin.path)
            answer = await PutPart(key, begin.uploadId, number, body, zlib.crc32(body))
            assert isinstance(answer, Done)
            await upload.append(parts=(Part(number, answer.etag, 1, zlib.crc32(body)),))
            if sender.orphaned is not None and sender.wentOn is None:
                sender.wentOn = self.now
        assert upload is not None
        content = f"blake3:{sender.key.hex()}"
        receipt = Receipt(
            *(offer.transferId, offer.name.path, offer.name.path, size, "stored", "full", "s3"),
            *("verified", "blake3", sender.key.hex(), "native", offer.principal, self.now),
        )
        receipt = await lifecycle.publish(upload, offer, content, receipt)
        if sender.orphaned is not None and sender.wentOn is None:
            sender.wentOn = self.now
        await lifecycle.retire(upload, content, receipt)
        return receipt

    # -- the engine

    def _perform(self, receiver: Receiver, call: Any, done: Callable[[Any, Any], None]) -> None:
        if receiver.free:
            receiver.free -= 1
            self._try(receiver, call, done, self.now, 0)
        else:
            receiver.waiting.append(lambda: self._try(receiver, call, done, self.now, 0))

    def _try(
        self, receiver: Receiver, call: Any, done: Callable[[Any, Any], None], since: float, n: int
    ) -> None:
        kind = type(call).__name__
        self.requests[kind] += 1
        most = self._capacity * BURST_SECONDS
        self._tokens = min(most, self._tokens + (self.now - self._filled) * self._capacity)
        self._filled = self.now
        took = ANSWER_SECONDS * self.random.uniform(0.5, 1.5) + (kind == "PutPart") * PART_SECONDS
        if self._tokens >= 1:
            self._tokens -= 1
            self._at(took, lambda: self._answer(receiver, call, done))
            return
        self.throttled += 1
        wait = self.random.uniform(0, min(LAST_WAIT, FIRST_WAIT * 2**n))
        if self.now + wait - since > PATIENCE:
            self.unavailable += 1
            self._free(receiver)
            done(None, Unavailable("the engine throttles"))
            return
        self._at(
            ANSWER_SECONDS + wait, lambda: self._try(receiver, call, done, since, min(n + 1, 20))
        )

    def _answer(self, receiver: Receiver, call: Any, done: Callable[[Any, Any], None]) -> None:
        answer = self.engine.carryOut(call)
        if isinstance(answer, Conflict) and "/names/" in call.key:
            # of a file: directories are claimed by everybody
            self.conflicts += b'"receipt":null' not in call.body
        self._free(receiver)
        done(answer, None)

    def _free(self, receiver: Receiver) -> None:
        if receiver.waiting:
            receiver.waiting.pop(0)()
        else:
            receiver.free += 1


def row(simulation: Simulation) -> dict[str, float]:
    """
    Return the figures of a run that is over.
    """
    files = len(simulation.senders)
    kinds = simulation.requests
    served = sum(kinds.values()) - simulation.throttled
    reads = sum(kinds[kind] for kind in READS)
    free = sum(kinds[kind] for kind in FREE)
    share = served / sum(kinds.values())
    gone = [s.wentOn - s.orphaned for s in simulation.senders if s.orphaned and s.wentOn]
    lost = [s for s in simulation.senders if s.receipt is None]
    names = {s.receipt.name for s in simulation.senders if s.receipt is not None}
    assert not lost, f"{len(lost)} files found no end"
    assert len(names) == files, "a name was given twice"
    assert all(s.wentOn for s in simulation.senders if s.orphaned), "an upload did not go on"
    gone = sorted(gone) or [0.0]
    writes = served - (reads + free) * share
    return {
        "requests": served / files,
        "reads": reads * share / files,
        "writes": writes / files,
        "deletes": free * share / files,
        "dollars": (writes * WRITE_DOLLARS + reads * share * READ_DOLLARS) / files,
        "throttled": 100 * simulation.throttled / (served + simulation.throttled),
        "conflicts": 1000 * simulation.conflicts / files,
        "numbered": 1000 * sum(" (" in name for name in names) / files,
        "moved": sum(s.moved for s in simulation.senders),
        "median": gone[len(gone) // 2],
        "p99": gone[len(gone) * 99 // 100],
        "last": gone[-1],
        "end": simulation.now,
    }


def main(words: Sequence[str]) -> int:
    """
    Print the table.

    @return: an exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale")
    parser.add_argument("--receivers", type=int, default=100)
    parser.add_argument("--uploads", type=int, default=10_000)
    parser.add_argument("--parts", type=int, default=13, help="of 8 MiB in a file (default 13)")
    parser.add_argument(
        "--rate", type=float, default=2.0, help="seconds between two parts of a sender (default 2)"
    )
    parser.add_argument(
        "--shared", type=float, default=0.1, help="share of files whose name another one has too"
    )
    parser.add_argument("--dead", type=float, default=0.1, help="share of receivers that die")
    parser.add_argument(
        "--capacity", type=float, action="append", help="requests/s of the engine (repeatable)"
    )
    chosen = parser.parse_args(words)
    names = max(1, round(chosen.uploads * (1 - chosen.shared / 2)))
    print(
        f"{chosen.receivers} receivers, {chosen.uploads} uploads of {chosen.parts} parts, a part"
        f" each {chosen.rate:g} s, {chosen.uploads - names} names wanted twice;"
        f" {chosen.dead:.0%} of the receivers die at once\n\n"
        "engine/s | requests a file: writes reads deletes | $ for 1,000 files | throttled |"
        " of 1,000 names: numbered lost at the end | sent again |"
        " uploads go on after: median 99 % last | all done"
    )
    found: dict[str, float] = {}
    for capacity in chosen.capacity or [100_000.0, 10_000.0, 5_500.0, 3_500.0]:
        began = time.monotonic()
        simulation = Simulation(
            *(chosen.receivers, chosen.uploads, capacity),
            parts=chosen.parts,
            rate=chosen.rate,
            names=names,
            dead=chosen.dead,
        )
        simulation.run()
        found = row(simulation)
        print(
            "{capacity:8.0f} | {writes:23.1f} {reads:5.1f} {deletes:7.1f} | {dollars:17.2f} |"
            " {throttled:7.1f} % | {numbered:25.1f} {conflicts:15.1f} | {moved:10.0f} |"
            " {median:26.1f} {p99:4.1f} {last:4.1f} s | {end:6.1f} s"
            "  (computed in {took:.0f} s)".format(
                capacity=capacity, took=time.monotonic() - began, **found
            ),
            flush=True,
        )
    print("\nfrom the last line, computed: files of so many parts that an engine takes in a second")
    perPart = 3.0  # the part, its record, and the end of that
    other = found["requests"] - perPart * chosen.parts
    print("parts      " + "".join(f"{parts:>10}" for parts in PARTS))
    for capacity in (3_500, 10_000, 100_000):
        costs = [2 if parts == 1 else other + perPart * parts for parts in PARTS]
        cells = [capacity / cost for cost in costs]
        print(f"{capacity:7}/s  " + "".join(f"{cell:10.1f}" for cell in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
