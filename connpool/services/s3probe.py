"""
The probe: what an S3 engine can do, tried before a receiver listens.

Engines differ in what they leave out, and most leave it out without a word: they answer 200 to
a condition that they have not looked at.  Two receivers on such an engine would overwrite
each other's files, so each promise that the store builds on is tried, with races where it is
about races, spread over all endpoints.  A race that is won once shows nothing for good: the
probe finds engines that do not have a promise, and never proves that one keeps it.

It blocks, since nothing may listen before, and is over within L{MOST_SECONDS}.
"""

from __future__ import annotations

import contextlib
import http.client
import secrets
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar

import attrs

from connpool.errors import ConnpoolError, StartFailed
from connpool.transfer.stores.s3 import calls
from connpool.transfer.stores.s3.answers import Again, answerOf, secondsOf
from connpool.transfer.stores.s3.replies import Reply
from connpool.transfer.stores.s3.requests import CHECKSUMS, Place, checksumOf, compose, signed
from connpool.transfer.stores.s3.signing import Keys, Signer

__all__ = ["Address", "Client", "Engine", "probe"]

_A = TypeVar("_A")

#: Seconds that the probe may take: mostly it needs two, on a machine with much to do ten.
MOST_SECONDS = 20.0
#: Writers in a race for one object, and how many races there are of each kind.
_WRITERS, _RACES = 8, 3
#: Uploads of one object that are completed at once, and how often.
_COMPLETES, _COMPLETE_RACES = 4, 10
#: Seconds that a race may take once it has a winner; those who are not told by then have lost.
_RACE_SECONDS = 2.0
#: Times that a request is made whose connection ends, and a race whose winner was not told.
_TRIES = 4
#: All racers at once, and who starts the races.
_THREADS = 2 * _RACES * (_WRITERS + 1) + _COMPLETE_RACES * (_COMPLETES + 1) + 4
#: Ends of a connection that another try may not meet.
_PASSING = (
    *(ConnectionResetError, BrokenPipeError, http.client.IncompleteRead),
    http.client.ImproperConnectionState,
)
#: Bytes of an answer that are read.
_MOST_BYTES = 1 << 20


@attrs.frozen
class Address:
    """
    An endpoint of an engine.

    @ivar url: as the operator wrote it.
    @ivar host: as requests name it.
    @ivar name: the host alone.
    """

    url: str
    host: str
    name: str
    port: int
    secure: bool


@attrs.frozen
class Engine:
    """
    An engine that was probed.

    @ivar product: its name for itself.
    @ivar checksum: the check of bodies that it makes, one of C{CHECKSUMS}.
    @ivar completes: whether a C{Complete} may have a condition.
    @ivar atomic: whether of several conditional C{Complete}s at once one won, each time.
    @ivar unsafe: why several receivers may not share it; empty if they may.
    @ivar skew: seconds that its clock is ahead of ours.
    """

    product: str
    checksum: str
    completes: bool
    atomic: bool
    unsafe: str = ""
    skew: float = 0.0


_TRY_LATER = "see that it runs, and that neither it nor this machine has too much to do"


class _Failed(Exception):
    """
    A promise that the engine does not keep, in one line.
    """


class Client:
    """
    Calls that block, over C{http.client}, a connection for each thread and endpoint.

    @ivar product: C{Server} of the last answer.
    @ivar skew: seconds that its clock is ahead.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        place: Place,
        signer: Signer,
        keys: Keys,
        context: ssl.SSLContext | None,
        deadline: float,
    ) -> None:
        self._addresses = addresses
        self._place = place
        self._signer = signer
        self._keys = keys
        self._context = context
        self._deadline = deadline
        self._connections = threading.local()
        self._opened: list[http.client.HTTPConnection] = []
        self.product = "the engine"
        self.skew = 0.0

    @property
    def url(self) -> str:
        """
        The preferred endpoint.
        """
        return self._addresses[0].url

    @property
    def left(self) -> float:
        """
        Seconds that are left.
        """
        return self._deadline - time.monotonic()

    def perform(
        self,
        call: calls.Call[_A],
        at: int = 0,
        checks: list[tuple[str, str]] | None = None,
        checksum: str = "",
    ) -> _A:
        """
        Make a call.

        @param at: the number of the endpoint, modulo how many there are.
        """
        address = self._addresses[at % len(self._addresses)]
        outgoing = compose(call, self._place, checks or (), checksum)
        skewed = False
        while True:
            reply = self._ask(address, outgoing)
            try:
                answer: _A = answerOf(call, reply)
                return answer
            except Again as e:
                if e.skewed and not skewed:
                    skewed = True
                    self.skew = secondsOf(reply.headers.get("date", "")) - time.time()
                elif e.refused or "NoSuchBucket" in str(e):
                    raise
                elif self.left < 1:
                    raise _Failed(f"it answers {e}, again and again") from None
                else:
                    time.sleep(0.05 + 0.1 * secrets.randbelow(1000) / 1000)

    def drive(self, core: Coroutine[calls.Call[Any], Any, None]) -> None:
        """
        Make the calls of a core, one after the other.
        """
        answer: Any = None
        with contextlib.suppress(StopIteration):
            while True:
                call = core.send(answer)
                if isinstance(call, calls.Together):
                    answer = [self.perform(each) for each in call.calls]
                else:
                    answer = self.perform(call)

    def _ask(self, address: Address, outgoing: Any) -> Reply:
        cached: dict[Any, Any] = self._connections.__dict__
        headers = dict(
            signed(outgoing, address.host, self._keys, self._signer, time.time() + self.skew)
        )
        for left in reversed(range(_TRIES)):
            connection = cached.get(address)
            if connection is None:
                connection = cached[address] = self._connect(address)
            connection.timeout = max(0.1, self.left)
            try:
                connection.request(outgoing.method, outgoing.target, outgoing.body or None, headers)
                answer = connection.getresponse()
                body = answer.read(_MOST_BYTES)
            except (OSError, http.client.HTTPException) as e:
                del cached[address]
                connection.close()
                if not (left and isinstance(e, _PASSING)):
                    raise _Failed(f"no answer from {address.url}: {_shown(e)}") from None
                time.sleep(0.1)
                continue
            got = {name.lower(): value for name, value in answer.getheaders()}
            self.product = got.get("server", self.product)[:40]
            return Reply(answer.status, got, body)
        raise AssertionError("the last try returned or raised")

    def _connect(self, address: Address) -> http.client.HTTPConnection:
        timeout = max(0.1, self.left)
        connection: http.client.HTTPConnection
        if address.secure:
            connection = http.client.HTTPSConnection(
                address.name, address.port, timeout=timeout, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(address.name, address.port, timeout=timeout)
        self._opened.append(connection)
        return connection

    def close(self) -> None:
        """
        Close all connections.
        """
        for each in self._opened:
            each.close()


def _shown(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"it does not answer in time; {_TRY_LATER}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}); see AWS_CA_BUNDLE"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class _Probe:
    """
    The trials, on a client.
    """

    def __init__(
        self,
        client: Client,
        pool: ThreadPoolExecutor,
        place: Place,
        prefix: str,
        endpoints: int,
    ) -> None:
        self._client = client
        self._pool = pool
        self._racing: list[Future[Any]] = []
        self._place = place
        self._files = prefix
        self._base = f".connpool/{prefix}probe/{secrets.token_hex(8)}/"
        self._endpoints = endpoints
        self._written: set[str] = set()
        self._uploads: set[tuple[str, str]] = set()

    def run(
        self, *, unsafe: bool, then: Callable[[], Coroutine[calls.Call[Any], Any, None]] | None
    ) -> Engine:
        """
        @raise _Failed: a promise is not kept without which nothing works.
        @raise StartFailed: it must not be shared; one line.
        """
        self._look()
        submit = self._pool.submit
        races = [
            submit(self._race, f"{kind}{n}", kind)
            for kind in ("absent", "match")
            for n in range(_RACES)
        ]
        submit(self._listing).result()
        checksum = self._checksum()
        completes, atomic = self._complete(checksum)
        danger = next((why for each in races if (why := each.result())), "")
        client = self._client
        if danger and not unsafe:
            raise StartFailed(
                f"{client.product} at {client.url} cannot be shared: {danger}; take another "
                "engine (docs/scale.rst lists some), or write unsafe=yes and run one receiver only"
            )
        if then is not None:
            client.drive(then())
        return Engine(client.product, checksum, completes, atomic, danger, client.skew)

    def _key(self, name: str) -> str:
        key = f"{self._base}{name}"
        self._written.add(key)
        return key

    def _look(self) -> None:
        """
        See that both buckets are there and can be listed: 404 becomes 403 without that.
        """
        for at in range(self._endpoints):
            for key in (f"{self._files}{self._base.rsplit('/', 2)[1]}", f"{self._base}nothing"):
                bucket = self._place.bucketOf(key)
                try:
                    found = self._client.perform(calls.Get(key), at)
                except Again as e:
                    raise _Failed(_remedy(str(e), bucket)) from None
                if not isinstance(found, calls.Missing):
                    raise _Failed(f"the engine finds an object {key} that nobody wrote")

    def _together(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        """
        Do jobs at the same time.

        @return: what those return that end within L{_RACE_SECONDS}, or with the first that is
            stored: where many wait for a lock, an engine may take seconds for the last.
        """
        start = threading.Barrier(len(jobs))

        def run(job: Callable[[], Any]) -> Any:
            start.wait()
            return job()

        racing = [self._pool.submit(run, job) for job in jobs]
        self._racing += racing
        ended, waiting = wait(racing, _RACE_SECONDS)
        while waiting and not any(isinstance(each.result(), calls.Done) for each in ended):
            more, waiting = wait(waiting, max(0, self._client.left), FIRST_COMPLETED)
            if not more:
                raise _Failed(f"it did not end a race in time; {_TRY_LATER}")
            ended |= more
        return [each.result() if each in ended else None for each in racing]

    def _race(self, name: str, kind: str) -> str:
        """
        Let writers race for one object.

        @return: why the engine is unsafe; empty if one won.
        """
        for number in range(_TRIES):
            danger = self._raceOnce(f"{name}-{number}", kind)
            if danger is not None:
                return danger
        raise _Failed("it tells no writer that it has won a race")

    def _raceOnce(self, name: str, kind: str) -> str | None:
        """
        @return: as L{_race}; L{None} if nobody was told that it won: an answer was lost, and
            whoever asks again loses to itself.
        """
        key = self._key(name)
        perform = self._client.perform
        condition: calls.Condition = calls.ABSENT
        if kind == "match":
            first = perform(calls.Put(key, b"first"))
            assert isinstance(first, calls.Done)
            condition = calls.Match(first.etag)

        def write(number: int) -> Any:
            return perform(calls.Put(key, b"writer %d" % number, condition), number)

        answers = self._together([partial(write, number) for number in range(_WRITERS)])
        winners = [n for n, answer in enumerate(answers) if isinstance(answer, calls.Done)]
        header = "If-None-Match" if kind == "absent" else "If-Match"
        if not winners:
            return None
        if len(winners) > 1:
            return f"{len(winners)} of {_WRITERS} writers won a race that {header} decides"
        found = perform(calls.Get(key))
        if not isinstance(found, calls.Found) or found.body != b"writer %d" % winners[0]:
            return f"the object that {header} was won for is another writer's"
        return ""

    def _checksum(self) -> str:
        """
        Return the check that the engine makes of bodies.
        """
        for checksum in CHECKSUMS:
            wrong = checksumOf(calls.Put("", b"another body"), checksum)
            call = calls.Put(self._key(f"wrong-{checksum}"), b"this body")
            try:
                refused = isinstance(self._client.perform(call, 0, wrong), calls.BadDigest)
            except (Again, ConnpoolError):
                refused = False
            right = checksumOf(call, checksum)
            if refused and isinstance(self._client.perform(call, 0, right), calls.Done):
                return checksum
        raise _Failed("the engine stores bodies that are not those of their CRC-32 or MD5")

    def _listing(self) -> None:
        key = self._key("listed")
        self._client.perform(calls.Put(key, b"0123456789"))
        for at in range(self._endpoints):
            listed = self._client.perform(calls.List(key), at)
            if [each.key for each in listed.entries] != [key]:
                raise _Failed("a listing does not show what was written before")
            found = self._client.perform(calls.Get(key, (2, 5)), at)
            if not isinstance(found, calls.Found) or (found.body, found.size) != (b"234", 10):
                raise _Failed("a range of an object is not that range")

    def _complete(self, checksum: str) -> tuple[bool, bool]:
        """
        Return whether a Complete takes a condition, and whether it is decided by one.
        """
        key = self._key("listed")
        try:
            answer = self._begun(key, checksum, 0)(calls.ABSENT)
        except (Again, ConnpoolError):
            # 501, or what stands for it; without the condition it must work
            answer = None
        if answer != calls.Conflict():
            key = self._key("completed")
            self._begun(key, checksum, 0)(None)
            if not isinstance(self._client.perform(calls.Get(key)), calls.Found):
                raise _Failed("a multipart upload cannot be completed")
            return False, False
        races = [
            self._pool.submit(self._raceComplete, self._key(f"complete{n}"), checksum)
            for n in range(_COMPLETE_RACES)
        ]
        return True, all(each.result() for each in races)

    def _raceComplete(self, key: str, checksum: str) -> bool:
        """
        Return whether one of several Completes won at most.
        """
        begun = [self._begun(key, checksum, number) for number in range(_COMPLETES)]
        answers = self._together([partial(complete, calls.ABSENT) for complete in begun])
        return sum(isinstance(each, calls.Done) for each in answers) <= 1

    def _begun(self, key: str, checksum: str, at: int) -> Callable[[calls.Condition], Any]:
        """
        Begin a multipart upload of one part, and return what completes it.
        """
        client = self._client
        body = b"part %d" % at
        created = client.perform(calls.CreateUpload(key), at, None, checksum)
        self._uploads.add((key, created.uploadId))
        part = calls.PutPart(key, created.uploadId, 1, body, zlib.crc32(body))
        done = client.perform(part, at, checksumOf(part, checksum))
        if not isinstance(done, calls.Done):
            raise _Failed("a part of a multipart upload cannot be stored")
        parts = ((1, done.etag, part.crc),)

        def complete(condition: calls.Condition) -> Any:
            call = calls.Complete(key, created.uploadId, parts, condition)
            return client.perform(call, at, None, checksum)

        return complete

    def clean(self) -> None:
        """
        Remove what the probe wrote, when the last writers have ended; what cannot be removed
        is left.
        """
        wait(self._racing)
        left: list[calls.Call[Any]] = [calls.Abort(*each) for each in self._uploads]
        for call in [*left, *map(calls.Delete, self._written)]:
            with contextlib.suppress(_Failed, Again, ConnpoolError):
                self._client.perform(call)
        self._client.close()


def _remedy(why: str, bucket: str) -> str:
    for word, remedy in (
        ("NoSuchBucket", f"make the bucket {bucket} first"),
        ("AccessDenied", f"allow s3:ListBucket and s3:GetObject on the bucket {bucket}"),
        ("InvalidAccessKeyId", "give it the keys of this engine"),
        ("SignatureDoesNotMatch", "the secret key is not the one of this engine"),
    ):
        if word in why:
            return f"{why}; {remedy}"
    return why


def probe(
    addresses: Sequence[Address],
    place: Place,
    prefix: str,
    signer: Signer,
    keys: Keys,
    context: ssl.SSLContext | None = None,
    *,
    unsafe: bool = False,
    then: Callable[[], Coroutine[calls.Call[Any], Any, None]] | None = None,
) -> Engine:
    """
    Try an engine.

    @param addresses: its endpoints.
    @param prefix: of the files' keys: empty, or ending with a slash.
    @param context: for TLS.
    @param unsafe: take an engine that several receivers may not share.
    @param then: makes a core that has the last word, on an engine that will do.
    @raise StartFailed: it will not do; one line.
    """
    client = Client(addresses, place, signer, keys, context, time.monotonic() + MOST_SECONDS)
    url = client.url
    pool = ThreadPoolExecutor(_THREADS, "s3-probe")
    trials = _Probe(client, pool, place, prefix, len(addresses))
    try:
        # in a thread, because looking up a name has no bound of its own
        return pool.submit(trials.run, unsafe=unsafe, then=then).result(MOST_SECONDS)
    except StartFailed:
        raise
    except TimeoutError:
        raise StartFailed(
            f"the engine at {url} did not end the probe within {MOST_SECONDS:g} s; {_TRY_LATER}"
        ) from None
    except (_Failed, Again, ConnpoolError) as e:
        raise StartFailed(f"the engine at {url} cannot be used: {e}") from None
    finally:
        pool.submit(trials.clean)
        pool.shutdown(wait=False)
