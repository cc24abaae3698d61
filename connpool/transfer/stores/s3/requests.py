"""
The calls of the store as signed requests, made again until they have an answer.

Theory of operation
===================
A request goes over a connection that is leased from a pool for the time until its answer is
read.  Between tries there is a pause, drawn at random from a span that grows, so that many
calls which failed together do not come back together; where the engine asks for it, fewer
connections are used for a while.  After L{MOST_SECONDS} of failed tries, or what else its maker
has patience for, a call fails with L{Unavailable}, and whoever made it tells its sender to come
back.

Two failures are mended at once, each a single time in a row: a connection that was used
before and ended without a byte of an answer was closed by the engine meanwhile, and keys that
the engine refuses are asked for anew.  A clock that the engine finds wrong is corrected by the
engine's own.
"""

from __future__ import annotations

import base64
import hashlib
import math
import random
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol, TypeVar
from xml.sax.saxutils import escape

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from connpool.errors import PoolClosed, PoolDown, PoolError, Unavailable
from connpool.interfaces import IConnectionPool
from connpool.logonce import LogOnce
from connpool.transfer.stores.s3 import calls
from connpool.transfer.stores.s3.answers import Again, answerOf, secondsOf
from connpool.transfer.stores.s3.exchange import Exchange
from connpool.transfer.stores.s3.replies import Broken, Reply
from connpool.transfer.stores.s3.signing import Keys, Signer, encodedPath, encodedQuery

__all__ = [
    "CHECKSUMS",
    "KeySource",
    "Outgoing",
    "Place",
    "S3Stats",
    "SignedRequests",
    "compose",
    "signed",
]

_A = TypeVar("_A")
Headers = list[tuple[str, str]]

#: Seconds of failed tries after which a call fails.
MOST_SECONDS = 120.0
#: Seconds without a sign of life that end a request; a C{Complete} may copy the parts first.
PATIENCE_SECONDS, COMPLETE_PATIENCE_SECONDS = 30.0, 900.0
#: The pause after a failed try, in seconds: the first, its growth, the longest.
_PAUSE_SECONDS, _PAUSE_GROWTH, _MOST_PAUSE_SECONDS = 0.1, 1.7, 15.0
#: Seconds that every try has.
_LEAST_SECONDS = 0.5
#: Seconds after which an engine that asked for fewer requests gets twice as many again.
_CALM_SECONDS = 5.0
#: Seconds of failures after which the engine is a trouble.
_TROUBLE_SECONDS = 5.0
#: Bytes of an object that is read whole.
_MOST_OBJECT_BYTES = 64 << 20
#: Bytes whose MD5 is computed on the reactor's thread.
_INLINE_BYTES = 64 * 1024

#: Checks of a body that an engine may make, the preferred one first.
CHECKSUMS = ("crc32", "md5")

#: Keys in the answers are encoded: they may have what XML has not.
_ENCODED = (("encoding-type", "url"),)
#: Keys that begin so are the store's own.
PRIVATE = ".connpool/"


@attrs.frozen
class Place:
    """
    The buckets of a store.

    @ivar bucket: of the files.
    @ivar private: of what the store keeps for itself; may be the same.
    """

    bucket: str
    private: str

    def bucketOf(self, key: str) -> str:
        """
        Return the bucket that C{key} is in.
        """
        return self.private if key.startswith(PRIVATE) else self.bucket


class KeySource(Protocol):
    """
    A source of access keys.
    """

    def keys(self, refused: Keys | None = None) -> Deferred[Keys]:
        """
        @param refused: keys that the engine does not take.
        @return: fires with keys; fails with an exception whose text is one line.
        """
        ...


@attrs.frozen
class Outgoing:
    """
    A request before it is signed.

    @ivar headers: of this call, names in lower case.
    """

    method: str
    path: str
    query: str
    headers: Headers
    body: calls.Body = attrs.field(default=b"", repr=False)
    patience: float = PATIENCE_SECONDS

    @property
    def target(self) -> str:
        """
        Path and query.
        """
        return f"{self.path}?{self.query}" if self.query else self.path


def signed(outgoing: Outgoing, host: str, keys: Keys, signer: Signer, at: float) -> Headers:
    """
    Return all headers of a request to C{host}.
    """
    headers = [("host", host), *outgoing.headers]
    sent = signer.sign(keys, at, outgoing.method, outgoing.path, outgoing.query, headers)
    return [*sent, ("user-agent", "connpool")]


# -- calls to HTTP ---------------------------------------------------------------------------


def checksumOf(call: calls.Call[Any], checksum: str) -> Headers:
    """
    Return the header by which the engine checks the body of C{call}.

    @param checksum: one of L{CHECKSUMS}, or empty for no check.
    """
    if not checksum or not isinstance(call, calls.Put | calls.PutPart):
        return []
    if checksum == "md5":
        md5 = hashlib.md5(usedforsecurity=False)
        for piece in calls.pieces(call.body):
            md5.update(piece)
        return [("content-md5", base64.b64encode(md5.digest()).decode())]
    crc = call.crc if isinstance(call, calls.PutPart) else calls.crcOf(call.body)
    return [("x-amz-checksum-crc32", _asBase64(crc))]


def _asBase64(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def compose(
    call: calls.Call[Any], place: Place, checks: Iterable[tuple[str, str]] = (), checksum: str = ""
) -> Outgoing:
    """
    Return the request that makes C{call}.

    @param checks: as L{checksumOf} gives it.
    @param checksum: by which the engine checks parts.
    """
    key = call.prefix if isinstance(call, calls.List) else call.key  # type: ignore[attr-defined]  # all others have one
    bucket = place.bucketOf(key)
    method, patience = "GET", PATIENCE_SECONDS
    body: calls.Body = b""
    query: Headers = []
    headers: Headers = []
    match call:
        case calls.Put():
            method, body = "PUT", call.body
            headers = [*_conditions(call.condition), *_metadata(call), *checks]
        case calls.PutPart():
            method, body, headers = "PUT", call.body, list(checks)
            query = [("partNumber", str(call.number)), ("uploadId", call.uploadId)]
        case calls.Get(_, span):
            headers = [("range", f"bytes={span[0]}-{span[1] - 1}")] if span else []
        case calls.Head():
            method = "HEAD"
        case calls.Delete():
            method = "DELETE"
        case calls.List(_, after, limit, delimiter):
            query = [("list-type", "2"), ("prefix", key), ("max-keys", str(limit)), *_ENCODED]
            optional = (("start-after", after), ("delimiter", delimiter))
            query += [(name, value) for name, value in optional if value]
            key = ""
        case calls.ListUploads():
            query, key = [("uploads", ""), ("prefix", key), *_ENCODED], ""
        case calls.ListParts(_, uploadId, after):
            query = [("uploadId", uploadId), ("part-number-marker", str(after))]
        case calls.CreateUpload():
            method, query, headers = "POST", [("uploads", "")], _metadata(call)
            if checksum == "crc32":
                headers.append(("x-amz-checksum-algorithm", "CRC32"))
        case calls.Abort():
            method, query = "DELETE", [("uploadId", call.uploadId)]
        case calls.Complete():
            method, query = "POST", [("uploadId", call.uploadId)]
            headers, body = _conditions(call.condition), _listOfParts(call, checksum)
            patience = COMPLETE_PATIENCE_SECONDS
        case _:
            raise AssertionError(call)
    path = encodedPath(bucket, key)
    return Outgoing(method, path, encodedQuery(query), headers, body, patience)


def _conditions(condition: calls.Condition) -> Headers:
    if isinstance(condition, calls.Absent):
        return [("if-none-match", "*")]
    return [("if-match", condition.etag)] if condition else []


def _metadata(call: Any) -> Headers:
    return [(f"x-amz-meta-{name}", value) for name, value in call.metadata.items()]


def _listOfParts(call: calls.Complete, checksum: str) -> bytes:
    # AWS wants the checksum of each part again where the upload was begun with one
    crc = (
        (lambda value: f"<ChecksumCRC32>{_asBase64(value)}</ChecksumCRC32>")
        if checksum == "crc32"
        else (lambda _: "")
    )
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag>{crc(value)}</Part>"
        for number, etag, value in call.parts
    )
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    return (
        f'<CompleteMultipartUpload xmlns="{namespace}">{parts}</CompleteMultipartUpload>'.encode()
    )


# -- making them -----------------------------------------------------------------------------


@attrs.define
class S3Stats:
    """
    The numbers of a store on an S3 engine.

    @ivar requests: requests that had an answer of any kind.
    @ivar retries: requests that were made again.
    @ivar throttled: answers that asked for fewer requests.
    @ivar unavailable: calls that were given up after two minutes.
    @ivar sentBytes: bytes of objects and parts that were stored.
    @ivar spoolBytes: known to the store: bytes of the spool that parts take now.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset({"spoolBytes"})

    requests: int = 0
    retries: int = 0
    throttled: int = 0
    unavailable: int = 0
    sentBytes: int = 0
    spoolBytes: int = 0


class SignedRequests:
    """
    An engine, as L{calls.Requests} has it.

    @param reactor: the clock.
    @param pool: of L{Exchange}s with the engine.
    @param url: of the endpoints, for errors.
    @param checksum: one of L{CHECKSUMS} that the engine makes, or empty.
    @param skew: seconds that the engine's clock is ahead of ours, as far as is known.
    @param now: the time, in seconds since the epoch.
    @param jitter: returns a number from 0 to 1.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        pool: IConnectionPool,
        place: Place,
        signer: Signer,
        credentials: KeySource,
        url: str,
        checksum: str = CHECKSUMS[0],
        skew: float = 0.0,
        now: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._reactor = reactor
        self._pool = pool
        self._place = place
        self._signer = signer
        self._credentials = credentials
        self._url = url
        self._checksum = checksum
        self._now = now
        self._jitter = jitter
        self._offset = skew
        self._most = pool.settings.maxSize
        self._calming: Any = None
        self._failingSince: float | None = None
        self._workedAt = 0.0
        self._why = LogOnce(lambda why: self._log.warn("{url}: {why}", url=url, why=why))
        self._counts = S3Stats()

    def stats(self) -> S3Stats:
        """
        Return what was asked so far.
        """
        return attrs.evolve(self._counts)

    def trouble(self) -> str | None:
        since = self._failingSince
        if since is None or self._now() - since < _TROUBLE_SECONDS:
            return None
        clock = time.strftime("%H:%M:%S", time.localtime(since))
        return f"the engine at {self._url} fails since {clock}: {self._why.trouble}"

    def close(self) -> Deferred[None]:
        """
        End the connections.
        """
        if self._calming is not None:
            self._calming.cancel()
            self._calming = None
        return self._pool.close()

    def perform(self, call: calls.Call[_A], patience: float | None = None) -> Deferred[_A]:
        return Deferred.fromCoroutine(self._perform(call, patience))

    async def _perform(self, call: calls.Call[_A], patience: float | None) -> _A:
        outgoing = compose(call, self._place, checksum=self._checksum)
        quick = len(outgoing.body) <= _INLINE_BYTES
        if quick or (self._checksum != "md5" and isinstance(call, calls.PutPart)):
            checks = checksumOf(call, self._checksum)
        else:
            threads = self._reactor.getThreadPool()
            checks = await deferToThreadPool(
                self._reactor, threads, checksumOf, call, self._checksum
            )
        outgoing.headers.extend(checks)
        keys: Keys | None = None
        end = math.inf if patience is None else self._reactor.seconds() + patience
        giveUpAt = end
        failures = 0
        mended = refused = False
        while True:
            after, began = 0.0, self._now()
            try:
                keys = await self._keys(keys if refused else None)
                reply = await self._ask(outgoing, keys, end)
                answer: _A = answerOf(call, reply)
                self._worked(outgoing)
                return answer
            except Broken as e:
                why = str(e)
                if e.early and not mended:
                    mended = True
                    self._counts.retries += 1
                    continue
            except Again as e:
                why = str(e)
                after = e.after
                if e.skewed:
                    self._correct(reply)
                if e.throttled:
                    self._throttle()
                if e.refused:
                    if refused:
                        raise self._givenUp(why, began) from None
                    refused = True
                    self._counts.retries += 1
                    continue
            except PoolClosed:
                raise Unavailable("the store is closed") from None
            except PoolError as e:
                # a pool that is down has not tried again: there is nothing new to be told
                why = (isinstance(e, PoolDown) and self._why.trouble) or str(e)
                after = getattr(e, "retryAfter", 0.0)
            refused = mended = False
            self._failed(why, began)
            now = self._reactor.seconds()
            giveUpAt = min(giveUpAt, now + MOST_SECONDS)
            pause = min(_PAUSE_SECONDS * _PAUSE_GROWTH**failures, _MOST_PAUSE_SECONDS)
            pause = max(after, pause * (0.5 + self._jitter() / 2))
            failures += 1
            if now + pause > giveUpAt:
                raise self._givenUp(why, began)
            self._counts.retries += 1
            await deferLater(self._reactor, pause)

    async def _keys(self, refused: Keys | None) -> Keys:
        try:
            return await self._credentials.keys(refused)
        except Exception as e:
            raise Again(f"there are no keys: {e}") from None

    async def _ask(self, outgoing: Outgoing, keys: Keys, end: float) -> Reply:
        left = max(_LEAST_SECONDS, end - self._reactor.seconds())
        lease = await self._pool.acquire(min(MOST_SECONDS, left))
        exchange: Exchange = lease.protocol
        bad = False
        try:
            headers = signed(
                outgoing, exchange.host, keys, self._signer, self._now() + self._offset
            )
            reply = await exchange.ask(
                *(outgoing.method, outgoing.target, headers, outgoing.body),
                *(_MOST_OBJECT_BYTES, min(outgoing.patience, left)),
            )
            self._counts.requests += 1
            return reply
        except Broken as e:
            bad = e.silent
            raise
        finally:
            if not lease.released:
                if exchange.isReusable():
                    lease.release()
                else:
                    lease.discard(destinationBad=bad)

    def _worked(self, outgoing: Outgoing) -> None:
        if outgoing.method == "PUT":
            self._counts.sentBytes += len(outgoing.body)
        self._failingSince, self._workedAt = None, self._now()
        if self._why.trouble and self._why.over():
            self._log.info("{url}: the engine answers again", url=self._url)

    def _failed(self, why: str, began: float) -> None:
        if self._failingSince is None:
            self._failingSince = max(began, self._workedAt)
        self._why.met(why)

    def _givenUp(self, why: str, began: float) -> Unavailable:
        self._failed(why, began)
        self._counts.unavailable += 1
        return Unavailable(f"the engine behind this receiver fails: {why}; try again later")

    def _correct(self, reply: Reply) -> None:
        date = secondsOf(reply.headers.get("date", ""))
        if date:
            self._offset = date - self._now()

    def _throttle(self) -> None:
        self._counts.throttled += 1
        self._resize(max(1, self._pool.settings.maxSize // 2))
        if self._calming is None:
            self._calming = self._reactor.callLater(_CALM_SECONDS, self._calm)
        else:
            self._calming.reset(_CALM_SECONDS)

    def _calm(self) -> None:
        self._calming = None
        self._resize(min(self._most, self._pool.settings.maxSize * 2))
        if self._pool.settings.maxSize < self._most:
            self._calming = self._reactor.callLater(_CALM_SECONDS, self._calm)

    def _resize(self, size: int) -> None:
        self._pool.reconfigure(maxSize=size)
