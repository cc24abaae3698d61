"""
Calls that are made again until they have an answer, over a scripted pool in virtual time.
"""

import contextlib

import attrs
import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from connpool.errors import ConnectFailed, NoSpace, PoolClosed, PoolDown, StoreError, Unavailable
from connpool.transfer.stores.s3 import calls
from connpool.transfer.stores.s3.answers import Again, answerOf
from connpool.transfer.stores.s3.replies import Broken, Reply
from connpool.transfer.stores.s3.requests import (
    MOST_SECONDS,
    Place,
    SignedRequests,
    checksumOf,
    compose,
)
from connpool.transfer.stores.s3.signing import Keys, Signer

PLACE = Place("files", "inner")
OK = Reply(200, {"etag": '"e"'}, b"")
BUSY = Reply(503, {}, b"<Error><Code>ServiceUnavailable</Code></Error>")
SLOW = Reply(503, {"retry-after": "7"}, b"<Error><Code>SlowDown</Code></Error>")
DENIED = Reply(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
PUT = calls.Put("k", b"body")
DONE = calls.Done('"e"')


@attrs.define
class FakeSettings:
    maxSize: int = 16


class FakePool:
    """
    Leases of connections that answer from a script: replies, errors, or for an acquire
    C{("acquire", error)}.
    """

    def __init__(self, script):
        self.settings = FakeSettings()
        self.script = list(script)
        self.asked = []
        self.patience = []
        self.given = []
        self.sizes = []
        self.host = "engine.example"
        self.reusable = True

    def acquire(self, timeout=None):
        if self.script and isinstance(self.script[0], tuple):
            return fail(self.script.pop(0)[1])
        return succeed(self)

    released = False

    @property
    def protocol(self):
        return self

    def ask(self, method, target, headers, body, most, patience):
        self.asked.append((method, target, dict(headers), body))
        self.patience.append(patience)
        answer = self.script.pop(0) if self.script else OK
        if isinstance(answer, Deferred):
            return answer
        self.reusable = isinstance(answer, Reply)
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)

    def isReusable(self):
        return self.reusable

    def release(self):
        self.given.append("released")

    def discard(self, *, destinationBad=False):
        self.given.append("bad" if destinationBad else "discarded")

    def reconfigure(self, **changes):
        self.settings.maxSize = changes["maxSize"]
        self.sizes.append(changes["maxSize"])

    def close(self, timeout=None):
        return succeed(None)


class FakeKeys:
    def __init__(self):
        self.refused = []
        self.number = 0

    def keys(self, refused=None):
        if refused is not None:
            self.refused.append(refused)
            self.number += 1
        return succeed(Keys(f"AK{self.number}", "the-secret", "the-token"))


class World:
    def __init__(self, *script, checksum="crc32", skew=0.0):
        self.clock = Clock()
        self.clock.advance(1e9)
        self.pool = FakePool(script)
        self.keys = FakeKeys()
        self.requests = SignedRequests(
            self.clock,
            self.pool,
            PLACE,
            Signer("r"),
            self.keys,
            "http://engine.example",
            checksum,
            skew,
            now=self.clock.seconds,
            jitter=lambda: 1.0,
        )

    def perform(self, call=PUT, patience=None):
        got = []
        self.requests.perform(call, patience).addBoth(got.append)
        return got


def errorIn(got, kind):
    assert len(got) == 1
    assert isinstance(got[0], Failure)
    got[0].trap(kind)
    return got[0].value


def test_oneRequest():
    world = World(OK)
    assert world.perform() == [DONE]
    (request,) = world.pool.asked
    assert request[:2] == ("PUT", "/files/k")
    assert request[2]["host"] == "engine.example"
    assert request[2]["x-amz-security-token"] == "the-token"
    assert world.pool.given == ["released"]
    stats = world.requests.stats()
    assert (stats.requests, stats.retries, stats.sentBytes) == (1, 0, 4)


def test_againAfterAPause():
    world = World(BUSY, Broken("lost"), ("acquire", ConnectFailed("refused")), OK)
    got = world.perform()
    assert got == []
    world.clock.pump([0.1, 0.17, 0.289])
    assert got == [DONE]
    assert world.requests.stats().retries == 3
    assert world.pool.given == ["released", "discarded", "released"]


def test_theTimeThatAnEngineAsksFor():
    world = World(SLOW, OK)
    got = world.perform()
    world.clock.advance(6.9)
    assert got == []
    world.clock.advance(0.2)
    assert got == [DONE]
    world.requests.close()


def test_noMoreDialsThanThePoolWants():
    world = World(("acquire", PoolDown("down", 3.0)), OK)
    got = world.perform()
    world.clock.advance(2.9)
    assert got == []
    world.clock.advance(0.2)
    assert got == [DONE]


def test_whatAPoolThatIsDownSays():
    """
    A pool that does not dial for a while adds nothing to why it does not.
    """
    down = [("acquire", PoolDown(f"down for {n} s", n)) for n in (3.0, 4.0, 5.0)]
    world = World(("acquire", ConnectFailed("refused")), *down, OK)
    got = world.perform()
    said = set()
    while not got:
        world.clock.advance(0.5)
        said.add((world.requests.trouble() or "").rpartition(": ")[2])
    assert got == [DONE]
    assert said == {"", "refused"}


def test_givenUp():
    world = World(*[BUSY] * 1000)
    began = world.clock.seconds()
    got = world.perform()
    while not got:
        world.clock.advance(1)
    error = errorIn(got, Unavailable)
    assert MOST_SECONDS - 16 < world.clock.seconds() - began <= MOST_SECONDS
    assert "503 ServiceUnavailable" in str(error)
    assert len(world.pool.asked) < 30
    assert world.requests.stats().unavailable == 1


def test_lessPatience():
    """
    Whoever reads is told sooner than a transfer, of an engine that refuses and a silent one.
    """
    world = World(*[BUSY] * 1000)
    began = world.clock.seconds()
    got = world.perform(calls.Get("k"), 10.0)
    while not got:
        world.clock.advance(0.5)
    errorIn(got, Unavailable)
    assert 5 < world.clock.seconds() - began <= 10
    assert "http://engine.example fails since" in world.requests.trouble()
    silent = Deferred()
    world = World(silent)
    got = world.perform(calls.Get("k"), 10.0)
    assert world.pool.patience == [10.0]
    world.clock.advance(10)
    silent.errback(Broken("nothing came for 10 s", silent=True))
    errorIn(got, Unavailable)
    # it failed for as long as nobody had an answer
    assert "http://engine.example fails since" in world.requests.trouble()
    world = World(OK)
    assert world.perform() == [DONE]
    assert world.pool.patience == [30.0]


def test_fewerAtOnce():
    world = World(SLOW, SLOW, OK)
    got = world.perform()
    world.clock.advance(7.1)
    # it had begun to grow again
    assert world.pool.sizes == [8, 16, 8]
    world.clock.advance(7.1)
    assert got == [DONE]
    world.clock.advance(30)
    assert world.pool.settings.maxSize == 16
    assert world.clock.getDelayedCalls() == []
    assert world.requests.stats().throttled == 2


def test_silentServer():
    """
    The pool learns of it, and dials another endpoint.
    """
    world = World(Broken("nothing came", silent=True), OK)
    got = world.perform()
    world.clock.advance(1)
    assert got == [DONE]
    assert world.pool.given == ["bad", "released"]


def test_connectionThatWasClosedWhileIdle():
    """
    Once without a pause, then as every other failure.
    """
    world = World(Broken("closed", early=True), OK)
    assert world.perform() == [DONE]
    world = World(Broken("closed", early=True), Broken("closed", early=True), OK)
    got = world.perform()
    assert got == []
    world.clock.advance(0.1)
    assert got == [DONE]


def test_otherKeys():
    world = World(DENIED, OK)
    assert world.perform() == [DONE]
    assert [each.access for each in world.keys.refused] == ["AK0"]
    assert "Credential=AK1/" in world.pool.asked[1][2]["authorization"]


def test_noOtherKeysHelp():
    world = World(DENIED, DENIED)
    error = errorIn(world.perform(), Unavailable)
    assert "AccessDenied" in str(error)
    assert error.retryable


def test_noKeys():
    world = World()
    world.keys.keys = lambda refused=None: fail(ValueError("no access keys were found"))
    got = world.perform()
    while not got:
        world.clock.advance(5)
    assert "no access keys were found" in str(errorIn(got, Unavailable))
    assert world.pool.asked == []


def test_clock():
    skewed = Reply(
        403,
        {"date": "Sun, 29 Nov 2026 05:00:00 GMT"},
        b"<Error><Code>RequestTimeTooSkewed</Code></Error>",
    )
    world = World(skewed, OK)
    got = world.perform()
    world.clock.advance(0.1)
    assert got == [DONE]
    assert world.pool.asked[0][2]["x-amz-date"].startswith("2001")
    assert world.pool.asked[1][2]["x-amz-date"] == "20261129T050000Z"


def test_clockThatIsKnownToBeWrong():
    world = World(OK, skew=86_400.0)
    assert world.perform() == [DONE]
    assert world.pool.asked[0][2]["x-amz-date"] == "20010910T014640Z"


def test_forGood():
    world = World(Reply(501, {}, b"<Error><Code>NotImplemented</Code></Error>"))
    errorIn(world.perform(), StoreError)
    world = World(Reply(507, {}, b""))
    errorIn(world.perform(), NoSpace)


def test_redirect():
    """
    Nothing signed goes elsewhere.
    """
    world = World(Reply(307, {"location": "http://thief.example/"}, b""))
    errorIn(world.perform(), StoreError)
    assert len(world.pool.asked) == 1


def test_closed():
    world = World(("acquire", PoolClosed("closed")))
    errorIn(world.perform(), Unavailable)


def test_cancelledAmidAPause():
    world = World(BUSY)
    got = []
    d = world.requests.perform(PUT)
    d.addBoth(got.append)
    d.cancel()
    assert len(got) == 1
    assert world.clock.getDelayedCalls() == []


def test_trouble():
    world = World(*[BUSY] * 12, OK)
    got = world.perform()
    # one failure is none
    assert world.requests.trouble() is None
    while world.requests.trouble() is None:
        world.clock.advance(0.5)
    assert "since" in world.requests.trouble()
    assert "503 ServiceUnavailable" in world.requests.trouble()
    while not got:
        world.clock.advance(1)
    assert got == [DONE]
    assert world.requests.trouble() is None


# -- calls to HTTP


def test_bucketOfAKey():
    assert compose(calls.Get("p/a"), PLACE).path == "/files/p/a"
    assert compose(calls.Get(".connpool/p/log/1"), PLACE).path == "/inner/.connpool/p/log/1"
    listed = compose(calls.List(".connpool/p/", ".connpool/p/x", 7), PLACE)
    assert listed.target == (
        "/inner?encoding-type=url&list-type=2&max-keys=7"
        "&prefix=.connpool%2Fp%2F&start-after=.connpool%2Fp%2Fx"
    )
    listed = compose(calls.List("p/", limit=7, delimiter="/"), PLACE)
    assert listed.target == (
        "/files?delimiter=%2F&encoding-type=url&list-type=2&max-keys=7&prefix=p%2F"
    )


def test_checksums():
    body = b"123456789"
    assert checksumOf(calls.Put("k", body), "crc32") == [("x-amz-checksum-crc32", "y/Q5Jg==")]
    assert checksumOf(calls.PutPart("k", "u", 1, body, 1), "crc32") == [
        ("x-amz-checksum-crc32", "AAAAAQ==")
    ]
    assert checksumOf(calls.Put("k", b""), "md5") == [("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==")]
    assert checksumOf(calls.Put("k", body), "") == []
    assert checksumOf(calls.Head("k"), "md5") == []


def test_checksumOfAFile(tmp_path):
    path = tmp_path / "spool"
    path.write_bytes(b"--123456789--")
    with open(path, "rb") as file:
        piece = calls.Piece(file.fileno(), 2, 9)
        assert checksumOf(calls.Put("k", piece), "crc32")[0][1] == "y/Q5Jg=="


def test_partsAreNamedWithTheirChecksums():
    """
    AWS wants those of an upload that was begun with some; other engines get none.
    """
    call = calls.Complete("k", "u<>", ((1, '"a&b"', 1), (3, '"c"', 2)), calls.ABSENT)
    composed = compose(call, PLACE, None, "crc32")
    assert b'<PartNumber>1</PartNumber><ETag>"a&amp;b"</ETag>' in composed.body
    assert b"<ChecksumCRC32>AAAAAQ==</ChecksumCRC32>" in composed.body
    assert ("if-none-match", "*") in composed.headers
    assert composed.query == "uploadId=u%3C%3E"
    assert b"Checksum" not in compose(call, PLACE, None, "md5").body
    begun = compose(calls.CreateUpload("k", {"connpool": "t"}), PLACE, None, "crc32")
    assert begun.headers == [("x-amz-meta-connpool", "t"), ("x-amz-checksum-algorithm", "CRC32")]


def test_everyCallHasARequest():
    """
    And every answer that says no is one of the call, or an error.
    """
    key = {"key": "k", "uploadId": "u"}
    given = {
        calls.Put: calls.Put("k", b""),
        calls.PutPart: calls.PutPart(**key, number=1, body=b"", crc=0),
        calls.Complete: calls.Complete(**key, parts=()),
        calls.List: calls.List("k"),
    }
    for kind in calls.Call.__subclasses__():
        if kind is calls.Together:
            continue
        names = {field.name for field in attrs.fields(kind)} & set(key)
        call = given.get(kind) or kind(**{name: key[name] for name in names})
        assert compose(call, PLACE).path.startswith("/files"), kind
        no = Reply(404, {}, b"<Error><Code>NoSuchUpload</Code></Error>")
        with contextlib.suppress(Again):
            assert answerOf(call, no) is not None, kind


def test_partsInPages():
    call = calls.ListParts("k", "u", 7)
    assert compose(call, PLACE).query == "part-number-marker=7&uploadId=u"
    part = "<Part><PartNumber>8</PartNumber><ETag>e</ETag></Part>"
    page = f"<L><IsTruncated>true</IsTruncated>{part}</L>"
    assert answerOf(call, Reply(200, {}, page.encode())) == calls.Parts(((8, "e"),), True)
    # an engine that does not go on is not asked for ever
    stuck = calls.ListParts("k", "u", 8)
    assert answerOf(stuck, Reply(200, {}, page.encode())) == calls.Parts(((8, "e"),), False)


@pytest.mark.parametrize("thing", ["stats", "trouble"])
def test_nothingSecretIsShown(thing, caplog):
    world = World(DENIED, DENIED)
    got = world.perform()
    shown = f"{got[0].getErrorMessage()} {getattr(world.requests, thing)()} {caplog.text}"
    assert "the-secret" not in shown
    assert "the-token" not in shown
    assert "Authorization" not in shown.title()
