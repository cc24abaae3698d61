"""
Receivers, a helper, a reaper and a consumer at one engine, in every order.

Every participant is a core of the store (a coroutine of calls).  At each step the schedule
chooses who goes on, and how: a call is carried out, once or twice, or its receiver dies before
or after it, or the answer is lost and the call is carried out later, at any time or never.

L{explore} tries every order, and every choice of at most so many accidents.  Orders that lead
to the same state are one from there on: a state is that of the engine, what each participant
was answered so far, and what the checks remember.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import zlib
from collections.abc import Callable
from typing import Any

import attrs

from connpool.errors import TransferError, Unavailable
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.s3.calls import (
    Delete,
    PutPart,
)
from connpool.transfer.stores.s3.claims import Wanted
from connpool.transfer.stores.s3.layout import Layout, newToken
from connpool.transfer.stores.s3.lifecycle import Lifecycle
from connpool.transfer.stores.s3.naming import Names
from connpool.transfer.stores.s3.reaper import Reaper
from connpool.transfer.stores.s3.uploadlog import Part, Upload
from tests.transfer.stores.kit import offer, receipt
from tests.transfer.stores.s3.engine import MemoryEngine

KEY = b"k" * 32
#: More switches than there are calls in a run.
EVERY = 1 << 20


@attrs.define(eq=False)
class Sent:
    """
    A file that a sender wants to store.

    @ivar parts: of an upload; 0 for one that is put as it is.
    """

    offer: Offer
    content: bytes
    parts: int
    receipts: list[Receipt] = attrs.field(factory=list)
    refused: list[TransferError] = attrs.field(factory=list)


def sent(name: str, content: bytes, *, parts: int = 0, key: bytes = KEY, **values: Any) -> Sent:
    # nothing at random: what is the same in two runs has to look the same
    asked = offer(name, size=len(content), key=key, transferId="0" * 32, **values)
    return Sent(asked, content, parts)


class Receiver:
    """
    A receiver, as far as its cores go.
    """

    def __init__(self, world: World) -> None:
        self.layout = layout = world.layout
        engine = world.engine
        self.names = Names(layout, lambda: engine.now, conditional=engine.conditional)
        self.lifecycle = Lifecycle(self.names)
        self.reaper = Reaper(layout, self.lifecycle, 1000.0)

    async def store(self, file: Sent) -> Receipt:
        if file.parts:
            return await self.storeLarge(file)
        wanted = Wanted(file.offer, content(file), self.receipt(file), newToken())
        return await self.names.publish(wanted, file.content)

    def receipt(self, file: Sent) -> Receipt:
        self_ = file.offer
        return receipt(
            transferId=newToken(), name=self_.name.path, wanted=self_.name.path, size=self_.size
        )

    async def storeLarge(self, file: Sent) -> Receipt:
        pointer = self.layout.partial(file.offer.principal, "", file.offer.key or b"")
        earlier = await self.names.earlier(file.offer)
        if earlier is not None:
            return earlier
        upload, seen = await self.lifecycle.resume(pointer)
        if upload is None:
            upload = await self.lifecycle.begin(
                file.offer, newToken(), 1 << 20, pointer, seen, parts=True
            )
        await self.fill(file, upload)
        wanted = self.receipt(file)
        stored = await self.lifecycle.publish(upload, file.offer, content(file), wanted)
        # the sender is told now; what follows may be lost
        file.receipts.append(stored)
        await self.lifecycle.retire(upload, content(file), stored)
        return stored

    async def fill(self, file: Sent, upload: Upload) -> None:
        length = len(file.content) // file.parts
        for number in range(1, file.parts + 1):
            body = file.content[(number - 1) * length : number * length]
            if number in upload.parts or upload.commit is not None:
                continue
            key = self.layout.file(upload.begin.path)
            answer = await PutPart(key, upload.begin.uploadId, number, body, zlib.crc32(body))
            if not hasattr(answer, "etag"):
                await self.lifecycle.remove(upload)
                raise Unavailable("gone")
            await upload.append(parts=(Part(number, answer.etag, len(body), zlib.crc32(body)),))


Choose = Callable[["World", int, int], int]


def content(file: Sent) -> str:
    return f"text:{file.content.decode()}"


class Participant:
    """
    A core that is run call by call.

    @ivar seen: a digest of all that it was answered, which decides everything it does.
    @cvar turn: whose turn it is.
    """

    turn: Participant

    def __init__(self, name: str, core: Any, file: Sent | None = None) -> None:
        self.name = name
        self.core = core
        self.file = file
        self.seen = hashlib.blake2b(name.encode(), digest_size=8)
        self.made = 0
        self.call: Any = None
        self.waiting: list[Any] = []  # of several at once
        self.answers: list[Any] = []
        self.half = False  # a Complete has looked
        self.alive = True
        self.advance(None)

    def lost(self) -> None:
        """
        Go on without an answer.
        """
        self.seen.update(b"lost")
        self.half = False
        self.advance(None, Unavailable("no answer"))

    def advance(self, answer: Any, error: BaseException | None = None) -> None:
        Participant.turn = self
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
        self.seen.update(repr(answer).encode() + getattr(answer, "body", b""))
        self.answers.append(answer)
        if self.waiting:
            self.call = self.waiting.pop(0)
        else:
            self.advance(self.answers if self.several else answer)


def token(size: int) -> str:
    """
    Make a token, for C{secrets.token_hex}: the same ones in each order.
    """
    of = Participant.turn
    of.made += 1
    return hashlib.blake2b(f"{of.name} {of.made}".encode(), digest_size=size).hexdigest()


class World:
    """
    One run.

    @param twice: whether the first file comes twice at once, by two receivers.
    @param choose: C{choose(world, orders, all)}: which of C{all}, 0 being the usual one; those
        from C{orders} on are accidents.
    """

    def __init__(
        self,
        files: list[Sent],
        choose: Choose,
        *,
        conditional: bool = True,
        consumes: int = 0,
        reaps: int = 0,
        sleeps: int = 0,
        lates: int = 1,
        deaths: int = 1,
        doubles: int = 1,
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
            "double": doubles,
        }
        self.late: list[Any] = []
        self.ever: dict[str, list[bytes]] = {}
        #: files whose receivers slept for longer than logs are kept
        self.overslept: list[Sent | None] = []
        self.consumed: list[tuple[str, bytes]] = []
        #: when the late call that is carried out now was made, and the objects were written
        self.issued: int | None = None
        self.written: dict[str, int] = {}
        self.story: list[str] = []
        self.stopped = False
        #: who made the last call, and whether it goes on
        self.current, self.isGoing = "", False
        self.trials = [0 for _ in files]
        # with twice, the sender of the first one has lost a connection and comes by another
        self.people = [self.trial(file) for file in (files[:1] * twice + files)]

    def trial(self, file: Sent) -> Participant:
        at = self.files.index(file)
        self.trials[at] += 1
        name = f"{at}{file.content.decode()}{self.trials[at]}"
        return Participant(name, Receiver(self).store(file), file)

    # -- what may happen

    def run(self) -> None:
        while True:
            people = [each for each in self.people if each.alive]
            if not people:
                again = [f for f in self.files if not f.receipts and not self.over(f)]
                if again:
                    self.engine.now += 10  # senders wait before they come again
                    self.people += [self.trial(file) for file in again]
                    continue
            # whoever went on last goes on, unless somebody else does
            people.sort(key=lambda each: each.name != self.current)
            self.isGoing = bool(people) and people[0].name == self.current
            going = [lambda p=each: self.step(p) for each in people] or [self.stop]
            options = [*going, *self.accidents(people)]
            picked = self.choose(self, len(going), len(options))
            options[picked]()
            if self.stopped:
                break
            if picked < len(people):
                self.current = people[picked].name
            self.check()
        self.finally_()

    def accidents(self, people: list[Participant]) -> list[Callable[[], None]]:
        options = []
        for each in people:
            if self.left["die"]:
                options += [lambda p=each: self.die(p, after=False)]
                options += [lambda p=each: self.die(p, after=True)]
            if self.left["late"] and changes(each.call):
                options += [lambda p=each: self.lose(p)]
            if self.left["double"] and changes(each.call):
                options += [lambda p=each: self.double(p)]
        options += [lambda c=late: self.carryOutLate(c) for late in self.late]
        options += [lambda k=key: self.consume(k) for key in self.consumable()]
        if self.left["reap"]:
            options += [self.reap]
        if self.left["sleep"] and people:
            options += [self.sleep]
        return options

    def state(self) -> bytes:
        """
        Return a digest of all that decides how it can go on.
        """
        engine = self.engine
        people = [(p.name, p.seen.digest(), p.half) for p in self.people if p.alive]
        late = [
            (call, getattr(call, "body", b""), [k for k, at in self.written.items() if at > since])
            for call, since in self.late
        ]
        files = [
            (f.receipts, [type(why) for why in f.refused], f in self.overslept) for f in self.files
        ]
        told = repr(
            (
                *(
                    sorted(people),
                    late,
                    files,
                    self.trials,
                    self.ever,
                    self.consumed,
                    self.left,
                ),
                *(engine.now, sorted(engine.objects.items()), sorted(engine.uploads.items())),
            )
        )
        return hashlib.blake2b(told.encode(), digest_size=12).digest()

    def over(self, file: Sent) -> bool:
        at = self.files.index(file)
        return self.trials[at] > 12 or any(not why.retryable for why in file.refused)

    def stop(self) -> None:
        self.stopped = True

    def step(self, person: Participant) -> None:
        call = person.call
        self.story.append(f"{person.name}: {call}")
        answer = self.engine.end(call) if person.half else self.engine.begin(call)
        person.half = answer is None
        if answer is not None:
            person.answered(answer)

    def double(self, person: Participant) -> None:
        self.left["double"] -= 1
        self.story.append(f"{person.name} makes a call twice")
        self.engine.carryOut(person.call)
        self.step(person)

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
        person.lost()

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
        self.overslept += [each.file for each in self.people if each.alive]
        self.people.append(Participant(f"reaper{self.left['reap']}", self.reaping()))

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
            # docs/scale.rst has both windows: a consumer, and a small file sent twice at once;
            # and a receiver that sleeps until the logs are gone
            known = self.consumed and not file.parts and file.offer.ifExists == "rename"
            known = known or file in self.overslept
            given = {(r.transferId, r.name) for r in file.receipts}
            self.verify(len(given) < 2 or bool(known), f"two receipts: {file.receipts}")
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
        for at, file in enumerate(self.files):
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
                    and (file.offer.ifExists in ("refuse", "skip") or self.trials[at] <= 12),
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


def explore(run: Callable[[Choose], None], accidents: int, switches: int = EVERY) -> int:
    """
    Run in every order, with every choice of at most so many accidents.

    @param switches: times, at most, that one goes on although another one could.
    @return: how many states there are.
    """
    seen: set[bytes] = set()
    stack: list[tuple[int, ...]] = [()]
    while stack:
        prefix, path, met, cut = stack.pop(), [], 0, 0

        def choose(world: World, orders: int, all_: int, prefix=prefix, path=path) -> int:
            nonlocal met, cut
            picked = 0
            if len(path) < len(prefix):
                picked = prefix[len(path)]
            else:
                # whose turn it is matters only where going on by another one is counted
                turn = world.current if switches < EVERY else ""
                state = world.state() + f"{met} {cut} {turn}".encode()
                if state in seen:
                    raise _Known
                seen.add(state)
                others = [*range(1, orders)] if cut < switches or not world.isGoing else []
                others += [*range(orders, all_)] if met < accidents else []
                stack.extend((*path, other) for other in others)
            path.append(picked)
            met += picked >= orders
            cut += 0 < picked < orders and world.isGoing
            return picked

        with contextlib.suppress(_Known):
            run(choose)
    return len(seen)


class _Known(Exception):
    """
    From here on everything was tried.
    """


def atRandom(run: Callable[[Choose], None], seeds: range) -> None:
    """
    Run one schedule for each seed, which leaves the usual way often.
    """
    for seed in seeds:
        picks = random.Random(seed)

        def choose(world: World, orders: int, all_: int, picks=picks) -> int:
            return 0 if picks.random() < 0.7 else picks.randrange(all_)

        try:
            run(choose)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
