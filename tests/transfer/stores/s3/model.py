"""
Receivers, a helper, a reaper and a consumer at one engine, in every order.

Every participant is a core of the store (a coroutine of calls).  At each step the schedule
chooses who goes on, and how: a call is carried out, or its receiver dies before or after it,
or the answer is lost and the call is carried out later, at any time or never.  A choice that
is not the first one of its step costs; schedules are all those that cost no more than a bound.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from connpool.errors import TransferError, Unavailable
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.s3.calls import (
    Delete,
    PutPart,
)
from connpool.transfer.stores.s3.claims import Claims, Wanted
from connpool.transfer.stores.s3.layout import Layout
from connpool.transfer.stores.s3.lifecycle import Lifecycle
from connpool.transfer.stores.s3.naming import Names
from connpool.transfer.stores.s3.outlook import Outlook
from connpool.transfer.stores.s3.reaper import Reaper
from connpool.transfer.stores.s3.uploadlog import Log, Part, finish
from tests.transfer.stores.kit import offer, receipt
from tests.transfer.stores.s3.engine import MemoryEngine

KEY = b"k" * 32


@attrs.define
class Sent:
    """
    A file that a sender wants to store.
    """

    offer: Offer
    content: bytes
    large: bool
    receipts: list[Receipt] = attrs.field(factory=list)
    refused: list[TransferError] = attrs.field(factory=list)


def sent(
    name: str, content: bytes, *, large: bool = False, key: bytes = KEY, **values: Any
) -> Sent:
    return Sent(offer(name, size=len(content), key=key, **values), content, large)


class Receiver:
    """
    A receiver, as far as its cores go.
    """

    def __init__(self, world: World) -> None:
        self.layout = layout = world.layout
        self.token = world.token
        conditional = world.engine.conditional

        def finishing(claim: Any) -> Any:
            return finish(layout, claim, conditional=conditional)

        claims = Claims(layout, finishing)
        self.names = Names(claims, finishing, lambda: world.engine.now)
        self.outlook = Outlook(claims, finishing)
        self.lifecycle = Lifecycle(layout, self.names, self.outlook)
        self.reaper = Reaper(layout, self.lifecycle, 1000.0)

    async def store(self, file: Sent) -> Receipt:
        if file.large:
            return await self.storeLarge(file)
        wanted = Wanted(file.offer, content(file), self.receipt(file), self.token())
        return await self.names.publish(wanted, file.content)

    def receipt(self, file: Sent) -> Receipt:
        self_ = file.offer
        return receipt(
            transferId=self.token(), name=self_.name.path, wanted=self_.name.path, size=self_.size
        )

    async def storeLarge(self, file: Sent) -> Receipt:
        pointer = self.layout.partial(file.offer.principal, "", file.offer.key or b"")
        earlier = await self.outlook.earlier(file.offer)
        if earlier is not None:
            return earlier
        upload, seen = await self.lifecycle.resume(pointer)
        if upload is None:
            log = await self.lifecycle.begin(
                file.offer, self.token(), 1 << 20, pointer, seen, parts=True
            )
        else:
            log = Log(self.layout, upload)
        await self.fill(file, log)
        stored = await self.lifecycle.publish(log, file.offer, content(file), self.receipt(file))
        # the sender is told now; what follows may be lost
        file.receipts.append(stored)
        await self.lifecycle.retire(log, content(file), stored)
        return stored

    async def fill(self, file: Sent, log: Log) -> None:
        half = len(file.content) // 2
        begin = log.upload.begin
        assert begin is not None
        for number, body in ((1, file.content[:half]), (2, file.content[half:])):
            if number in log.upload.parts or log.upload.commit is not None:
                continue
            key = self.layout.file(begin.path)
            answer = await PutPart(key, begin.uploadId, number, body, zlib.crc32(body))
            if not hasattr(answer, "etag"):
                await self.lifecycle.remove(log)
                raise Unavailable("gone")
            await log.append(parts=(Part(number, answer.etag, len(body), zlib.crc32(body)),))


def content(file: Sent) -> str:
    return f"text:{file.content.decode()}"


class Participant:
    def __init__(self, name: str, core: Any, file: Sent | None = None) -> None:
        self.name = name
        self.core = core
        self.file = file
        self.call: Any = None
        self.waiting: list[Any] = []  # of several at once
        self.answers: list[Any] = []
        self.half: Any = None  # a Complete that has looked
        self.alive = True
        self.advance(None)

    def advance(self, answer: Any, error: BaseException | None = None) -> None:
        try:
            asked = self.core.send(answer) if error is None else self.core.throw(error)
        except StopIteration as stopped:
            self.end(stopped.value)
            return
        except TransferError as why:
            self.alive = False
            if self.file is not None:
                self.file.refused.append(why)
            return
        self.waiting = list(getattr(asked, "calls", [asked]))
        self.several = hasattr(asked, "calls")
        self.answers = []
        if not self.waiting:
            self.advance([])
            return
        self.call = self.waiting.pop(0)

    def end(self, value: Any) -> None:
        self.alive = False
        if self.file is not None and value not in self.file.receipts:
            self.file.receipts.append(value)

    def answered(self, answer: Any) -> None:
        self.answers.append(answer)
        if self.waiting:
            self.call = self.waiting.pop(0)
        else:
            self.advance(self.answers if self.several else answer)


class World:
    """
    One run.

    @param twice: whether the first file comes twice at once, by two receivers.
    @param choose: C{choose(count)}: which of so many, 0 being the usual one.
    """

    def __init__(
        self,
        files: list[Sent],
        choose: Callable[[int], int],
        *,
        conditional: bool = True,
        consumes: int = 0,
        reaps: int = 0,
        sleeps: int = 0,
        lates: int = 1,
        deaths: int = 1,
        twice: bool = False,
    ) -> None:
        self.layout = Layout("in/")
        self.engine = MemoryEngine(conditional=conditional)
        self.engine.wrote = self.wrote
        self.files = files
        self.choose = choose
        self.left = {
            "consume": consumes,
            "reap": reaps,
            "sleep": sleeps,
            "late": lates,
            "die": deaths,
        }
        self.late: list[Any] = []
        self.ever: dict[str, list[bytes]] = {}
        self.consumed: list[tuple[str, bytes]] = []
        #: when the late call that is carried out now was made, and the objects were written
        self.issued: int | None = None
        self.written: dict[str, int] = {}
        self.story: list[str] = []
        self.tokens = 0
        self.trials = {id(file): 0 for file in files}
        # with twice, the sender of the first one has lost a connection and comes by another
        self.people = [self.trial(file) for file in (files[:1] * twice + files)]

    def token(self) -> str:
        """
        Make a token, the same ones in each run: listings are in their order.
        """
        self.tokens += 1
        return f"{self.tokens:032x}"

    def trial(self, file: Sent) -> Participant:
        self.trials[id(file)] += 1
        name = f"{file.content.decode()}{self.trials[id(file)]}"
        return Participant(name, Receiver(self).store(file), file)

    # -- what may happen

    def run(self) -> None:
        current = 0
        while True:
            people = [each for each in self.people if each.alive]
            if not people:
                again = [f for f in self.files if not f.receipts and not self.over(f)]
                if not again:
                    break
                self.engine.now += 10  # senders wait before they come again
                self.people += [self.trial(file) for file in again]
                continue
            current = min(current, len(people) - 1)
            options: list[Callable[[], None]] = [lambda p=people[current]: self.step(p)]
            others = [each for each in people if each is not people[current]]
            options += [lambda p=each: self.step(p) for each in others]
            if self.left["die"]:
                options += [lambda p=people[current]: self.die(p, after=False)]
                options += [lambda p=people[current]: self.die(p, after=True)]
            if self.left["late"] and changes(people[current].call):
                options += [lambda p=people[current]: self.lose(p)]
            options += [lambda c=late: self.carryOutLate(c) for late in self.late]
            options += [lambda k=key: self.consume(k) for key in self.consumable()]
            if self.left["reap"]:
                options += [self.reap]
            if self.left["sleep"]:
                options += [self.sleep]
            picked = self.choose(len(options))
            options[picked]()
            if 0 < picked <= len(others):
                current = (
                    [each for each in self.people if each.alive].index(others[picked - 1])
                    if (others[picked - 1].alive)
                    else 0
                )
            self.check()
        self.finally_()

    def over(self, file: Sent) -> bool:
        return self.trials[id(file)] > 12 or any(not why.retryable for why in file.refused)

    def step(self, person: Participant) -> None:
        call = person.call
        self.story.append(f"{person.name}: {call}")
        if person.half is not None:
            person.half = None
            person.answered(self.engine.end(call))
            return
        answer = self.engine.begin(call)
        if answer is None:
            person.half = call
            return
        person.answered(answer)

    def die(self, person: Participant, *, after: bool) -> None:
        self.left["die"] -= 1
        self.story.append(f"{person.name} dies {'after' if after else 'before'} {person.call}")
        if after:
            self.engine.carryOut(person.call)
        person.alive = False
        person.core.close()

    def lose(self, person: Participant) -> None:
        self.left["late"] -= 1
        self.story.append(f"{person.name} has no answer to {person.call}")
        self.late.append((person.call, len(self.story)))
        person.half = None
        person.advance(None, Unavailable("no answer"))

    def carryOutLate(self, late: Any) -> None:
        call, self.issued = late
        self.story.append(f"late: {call}")
        self.late.remove(late)
        self.engine.carryOut(call)
        self.issued = None

    def consumable(self) -> list[str]:
        if not self.left["consume"]:
            return []
        return [key for key in self.engine.objects if key.startswith("in/")]

    def consume(self, key: str) -> None:
        self.left["consume"] -= 1
        self.story.append(f"a consumer takes {key}")
        self.consumed.append((key, self.engine.objects[key].body))
        self.engine.carryOut(Delete(key))

    def sleep(self) -> None:
        self.left["sleep"] -= 1
        self.story.append("31 seconds go by")
        self.engine.now += 31

    def reap(self) -> None:
        self.left["reap"] -= 1
        self.story.append("a reaper comes, much later")
        self.engine.now += 2000
        self.people.append(Participant("reaper", self.reaping()))

    async def reaping(self) -> None:
        reaper = Receiver(self).reaper
        async for log in reaper.logs():
            await reaper.lookAfter(*log)

    # -- what must hold

    def wrote(self, key: str, before: Any, after: Any) -> None:
        if not key.startswith("in/") or after is None:
            return
        written = self.written.get(key, 0)
        self.written[key] = len(self.story)
        self.ever.setdefault(key, []).append(after.body)
        contents = {file.content for file in self.files}
        self.verify(after.body in contents, f"wrong bytes at {key}: {after.body!r}")
        if before is None or before.body == after.body:
            return
        writer = next(file for file in self.files if file.content == after.body)
        told = [f for f in self.files if f.receipts and f.content == before.body]
        if writer.offer.ifExists == "replace":
            # of what was there when it was made the newer one may take the place
            newer = self.issued is not None and written > self.issued
            told = told if newer else []
        if (key, before.body) in self.consumed:
            told = []  # it had been taken away, and a late PUT brought it back
        self.verify(not told, f"{after.body!r} clobbers {before.body!r}")

    def check(self) -> None:
        for file in self.files:
            if len({(r.transferId, r.name) for r in file.receipts}) > 1:
                self.verify(False, f"two receipts for {file.content!r}: {file.receipts}")
        names = [
            (f.receipts[0].name, f.content)
            for f in self.files
            if f.receipts and f.offer.ifExists != "replace"
        ]
        for name, text in names:
            others = [c for n, c in names if n == name and c != text]
            taken = ("in/" + name, text) in self.consumed
            self.verify(
                not others or taken or any(("in/" + name, c) in self.consumed for c in others),
                f"{name} was given twice",
            )

    def finally_(self) -> None:
        for file in self.files:
            for stored in file.receipts:
                key = "in/" + stored.name
                there = self.engine.objects.get(key)
                if there is not None and there.body == file.content:
                    continue
                came = file.content in self.ever.get(key, [])
                self.verify(came, f"{file.content!r} never came")
                replaced = there is not None and any(
                    f.offer.ifExists == "replace" and f.content == there.body for f in self.files
                )
                taken = (key, file.content) in self.consumed
                self.verify(
                    replaced or taken or self.replacedBefore(key, file.content),
                    f"{file.content!r} is missing at {key}: {there}",
                )
            if not file.receipts:
                self.verify(
                    bool(file.refused)
                    and (file.offer.ifExists in ("refuse", "skip") or self.trials[id(file)] <= 12),
                    f"{file.content!r} found no end: {file.refused}",
                )

    def replacedBefore(self, key: str, body: bytes) -> bool:
        """
        Tell whether another file took the place of C{body}, and was taken away.
        """
        after = self.ever[key][self.ever[key].index(body) + 1 :]
        return any(other != body for other in after)

    def verify(self, holds: bool, what: str) -> None:
        if not holds:
            raise AssertionError("\n".join([what, *self.story]))


def changes(call: Any) -> bool:
    return type(call).__name__ in {"Put", "PutPart", "Complete", "Delete", "Abort", "CreateUpload"}


def schedules(run: Callable[[Callable[[int], int]], None], cost: int) -> int:
    """
    Run every schedule that costs at most C{cost}.

    @return: how many these are.
    """
    count = 0
    stack: list[list[int]] = [[]]
    while stack:
        prefix = stack.pop()
        made: list[int] = []
        counts: list[int] = []

        def choose(options: int, prefix=prefix, made=made, counts=counts) -> int:
            picked = prefix[len(made)] if len(made) < len(prefix) else 0
            made.append(picked)
            counts.append(options)
            return picked

        run(choose)
        count += 1
        if sum(map(bool, prefix)) < cost:
            for at in range(len(prefix), len(counts)):
                stack += [[*made[:at], other] for other in range(1, counts[at])]
    return count


def atRandom(run: Callable[[Callable[[int], int]], None], seeds: Iterator[int] | range) -> int:
    """
    Run one schedule for each seed, which leaves the usual way often.
    """
    for seed in seeds:
        picks = random.Random(seed)

        def choose(options: int, picks=picks) -> int:
            return 0 if picks.random() < 0.7 else picks.randrange(options)

        try:
            run(choose)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    return len(seeds) if isinstance(seeds, range) else 0
