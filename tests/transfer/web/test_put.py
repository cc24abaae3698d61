"""
Files that come by PUT.
"""

import base64
import hashlib
from urllib.parse import quote_from_bytes

import pytest
from twisted.internet.defer import Deferred, fail
from zope.interface import implementer

from connpool.errors import NoSpace, SyncFailed
from connpool.interfaces import ITransferListener
from connpool.transfer.identities import Identity
from connpool.transfer.names import RelativeName
from connpool.transfer.receive.policy import Policy
from connpool.transfer.receive.smallfiles import SMALL_FILE_BYTES
from connpool.transfer.stores import MemoryStore
from tests.transfer.hostile import CORPUS, DOTFILES
from tests.transfer.web.kit import parseAnswers, request
from tests.transfer.world import Passwords

SMALL, LARGE = b"small", bytes(range(256)) * (SMALL_FILE_BYTES // 256 + 1)
BODIES = pytest.mark.parametrize("body", [b"", SMALL, LARGE], ids=["empty", "small", "large"])


def chunked(body, target=b"/x", fields=(), size=1000, trailers=b""):
    head = b"\r\n".join([b"PUT %b HTTP/1.1" % target, b"Host: [::1]", *fields])
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + wire + b"0\r\n" + trailers + b"\r\n"


def sha(body, algorithm="sha-256"):
    digest = hashlib.new(algorithm.replace("-", ""), body).digest()
    return f"{algorithm}=:{base64.b64encode(digest).decode()}:"


@BODIES
def test_stored(door, body):
    answer = door.connect().put(b"/dir/x.txt", body)
    assert answer.status == 201
    assert answer.fields["location"] == "../dir/x.txt"
    assert "repr-digest" not in answer.fields
    assert answer.json["name"] == answer.json["wanted"] == "dir/x.txt"
    assert answer.json["size"] == len(body)
    assert answer.json["protocol"] == "web"
    assert answer.json["integrity"] == "unverified"
    assert door.files == {"dir/x.txt": body}


@BODIES
def test_chunked(door, body):
    answer = door.connect().send(chunked(body)).answer()
    assert answer.status == 201
    assert door.files == {"x": body}


def test_everyAnswerProtectsItself(door):
    client = door.connect()
    for answer in (client.put(b"/x", SMALL), client.ask(b"GET", b"/"), client.put(b"/../x", SMALL)):
        assert answer.fields["cache-control"] == "no-store"
        assert answer.fields["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.fields["content-security-policy"]
        assert answer.fields["cross-origin-resource-policy"] == "same-origin"
        assert answer.fields["referrer-policy"] == "same-origin"
        assert "access-control-allow-origin" not in answer.fields
        assert "server" not in answer.fields


@BODIES
def test_theSameAgainAndAnother(door, body):
    client = door.connect()
    assert client.put(b"/x", body).status == 201
    again = client.put(b"/x", body)
    assert (again.status, again.json["status"]) == (200, "duplicate")
    other = client.put(b"/x", body + b"!")
    assert (other.status, other.json["name"], other.json["wanted"]) == (201, "x (1)", "x")
    assert other.fields["location"] == "./x%20%281%29"
    assert door.files == {"x": body, "x (1)": body + b"!"}


@BODIES
@pytest.mark.parametrize("rule", ["rename", "replace", "refuse"])
def test_nothingIsReplaced(doors, body, rule):
    world = doors(policy=Policy(ifExists=rule, minimumRate=0))
    client = world.connect()
    assert client.put(b"/x", body, b"If-None-Match: *").status == 201
    refused = client.put(b"/x", body + b"!", b"If-None-Match: *")
    assert (refused.status, refused.json["code"]) == (412, "exists")
    assert world.files == {"x": body}


@BODIES
def test_rules(doors, body):
    world = doors(policy=Policy(ifExists="replace", minimumRate=0))
    client = world.connect()
    client.put(b"/x", body)
    renamed = client.put(b"/x", body + b"1", b"Prefer: if-exists=rename")
    assert renamed.json["name"] == "x (1)"
    refused = client.put(b"/x", body + b"1", b"Prefer: respond-async, if-exists=refuse; a=b")
    assert refused.status == 409
    skipped = client.put(b"/x", body + b"1", b'Prefer: if-exists="skip"')
    assert (skipped.status, skipped.json["status"]) == (200, "skipped")
    assert client.put(b"/x", body + b"2").json["name"] == "x"
    assert world.files == {"x": body + b"2", "x (1)": body + b"1"}


def test_aRuleThatMayNotBeAskedFor(door):
    answer = door.connect().put(b"/x", SMALL, b"Prefer: if-exists=replace")
    assert (answer.status, answer.json["code"]) == (403, "forbidden")
    assert door.reception.stats().refused == 1


@pytest.mark.parametrize(
    ("field", "status"),
    [
        (b"If-Match: *", 412),
        (b'If-Match: "x"', 412),
        (b"If-Unmodified-Since: Sat, 29 Oct 1994 19:43:31 GMT", 412),
        (b'If-None-Match: "x"', 201),
        (b"Prefer: if-exists=overwrite", 400),
        (b"Prefer: durability=some", 400),
        (b"Prefer: durability=data", 201),
        (b"Content-Encoding: gzip", 415),
        (b"Content-Encoding: identity", 201),
        (b"Content-Type: multipart/byteranges; boundary=x", 415),
        (b"X-OC-Mtime: soon", 400),
        (b"X-OC-Mtime: 1e9", 400),
        (b"X-OC-Mtime: 1\r\nX-OC-Mtime: 1", 400),
        (b"Content-Range: bytes 0-4/5", 201),
        (b"Content-Range: bytes 0-4/*", 400),
        (b"Content-Range: bytes 0-4/6", 400),
        (b"Content-Range: bytes 1-5/6", 400),
        (b"Content-Range: bytes */5", 400),
        (b"Content-Range: bytes 4-0/5", 400),
        (b"Content-Range: bytes 0-5/6", 400),
        (b"Content-Range: lines 0-4/5", 400),
        (b"Content-Range: bytes 0-4/5\r\nContent-Range: bytes 0-4/5", 400),
        (b"X-HTTP-Method-Override: DELETE", 201),
        (b"Repr-Digest: sha-256=:AAAA:", 400),
        (b"Repr-Digest: sha-256=abc", 400),
        (b"Repr-Digest: md5=:AAAAAAAAAAAAAAAAAAAAAA==:", 400),
        (b"Repr-Digest: ,", 400),
        (b"Content-Digest: sha-256=?1", 400),
        (b"Want-Repr-Digest: sha-256=(", 400),
        (b"Want-Repr-Digest: crc32c=10", 201),
        (b"Want-Repr-Digest: sha-256=0", 201),
    ],
)
def test_fields(door, field, status):
    client = door.connect()
    answer = client.put(b"/x", SMALL, field)
    assert answer.status == status
    assert door.files == ({"x": SMALL} if status == 201 else {})
    assert "repr-digest" not in answer.fields


def test_noLength(door):
    assert door.connect().ask(b"PUT", b"/x").status == 411


def test_theTimeOfTheFile(root, door, doors):
    answer = door.connect().put(b"/x", SMALL, b"X-OC-Mtime: 1600000000.25")
    assert answer.fields["x-oc-mtime"] == "accepted"


@BODIES
@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
@pytest.mark.parametrize("field", ["Repr-Digest", "Content-Digest"])
def test_aDigestThatIsRight(door, body, algorithm, field):
    answer = door.connect().put(
        b"/x", body, f"{field}: md5=:AAAA:, {sha(body, algorithm)}".encode()
    )
    assert answer.status == 201
    assert answer.json["integrity"] == "verified"
    assert answer.json["digest"] == "sha256"
    assert sha(body, algorithm) in answer.fields["repr-digest"]


@BODIES
def test_aDigestThatIsWrong(door, body):
    client = door.connect()
    for fields in (
        [f"Repr-Digest: {sha(body + b'!')}"],
        [f"Repr-Digest: {sha(body)}, {sha(body + b'!', 'sha-512')}"],
        [f"Repr-Digest: {sha(body)}", f"Repr-Digest: {sha(body + b'!', 'sha-512')}"],
        [f"Repr-Digest: {sha(body)}", f"Content-Digest: {sha(body + b'!', 'sha-512')}"],
    ):
        answer = client.put(b"/x", body, *(field.encode() for field in fields))
        assert (answer.status, answer.json["code"]) == (400, "digest-mismatch")
    assert door.files == {}
    assert door.reception.stats().failed == 4


def test_twoDigestsThatDiffer(door):
    fields = [f"Repr-Digest: {sha(b'a')}".encode(), f"Content-Digest: {sha(b'b')}".encode()]
    assert door.connect().put(b"/x", SMALL, *fields).status == 400
    assert door.files == {}


@BODIES
def test_aDigestBehindTheBody(door, body):
    client = door.connect()
    for told, status in ((body, 201), (body + b"!", 400)):
        trailers = f"Repr-Digest: {sha(told)}\r\n".encode()
        client.send(chunked(body, fields=[b"Trailer: Repr-Digest"], trailers=trailers))
        answer = client.answer()
        assert answer.status == status
    assert door.files == {"x": body}


@BODIES
def test_aDigestThatWasNotAnnounced(door, body):
    trailers = f"Repr-Digest: {sha(body)}\r\n".encode()
    answer = door.connect().send(chunked(body, trailers=trailers)).answer()
    assert answer.status == 400
    assert "Trailer" in answer.json["detail"]
    assert door.files == {}


@BODIES
def test_aDigestThatIsWanted(door, doors, body):
    wish = b"Want-Repr-Digest: crc32c=10, sha-512=3, sha-256=1"
    answer = door.connect().put(b"/x", body, wish)
    assert answer.fields["repr-digest"] == sha(body, "sha-512")
    assert answer.json["integrity"] == "unverified"
    always = doors(sha256=True).connect().put(b"/x", body)
    assert always.fields["repr-digest"] == sha(body)
    assert always.json["sha256"] == hashlib.sha256(body).hexdigest()


# -- names


@pytest.mark.parametrize("profile", ["portable", "posix"])
def test_hostileNames(doors, profile):
    for item in CORPUS:
        if len(item.raw) > 2048:
            continue
        world = doors(policy=Policy(names=profile, minimumRate=0))
        client = world.connect()
        answer = client.put(b"/" + quote_from_bytes(item.raw, safe=b"/").encode(), SMALL)
        if item.taken(profile):
            assert answer.status == 201, item
            assert world.files == {item.raw.decode(): SMALL}, item
        else:
            assert answer.status in {400, 404}, item
            assert world.files == {}, item
        assert all(byte < 127 for byte in answer.body), item


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (b"/..", None),
        (b"/../x", None),
        (b"/a/../b", None),
        (b"/%2e%2e%2fx", None),
        (b"/..%2fx", None),
        (b"/%2E%2E/x", None),
        (b"//x", None),
        (b"/%2fx", None),
        (b"/a//b", None),
        (b"/./x", None),
        (b"/a/%2e/x", None),
        (b"/%00", None),
        (b"/a%0ab", None),
        (b"/%c0%ae", None),
        (b"/%ed%a0%80", None),
        (b"/%ff", None),
        (b"/%", None),
        (b"/a%2", None),
        (b"/a%zz", None),
        (b"/x?y", None),
        (b"/x#y", None),
        (b"/..%5cx", None),
        (b"/a%2fb", "a/b"),
        (b"/%25%32%65", "%2e"),
        (b"/%252e%252e%252fx", "%2e%2e%2fx"),
        (b"/a+b", "a+b"),
        (b"/x;v=1", "x;v=1"),
        (b"/%3Fx%23", "?x#"),
        (b"/%e4%ba%8c", "二"),
        (b"/<img%20src=x%20onerror=y>", "<img src=x onerror=y>"),
        (b"/" + b"x/" * 2048 + b"y", None),
    ],
)
def test_targets(door, target, name):
    answer = door.connect().put(target, SMALL)
    assert door.files == ({} if name is None else {name: SMALL})
    if name is None:
        assert (answer.status, answer.json["code"]) == (400, "name-refused")


@pytest.mark.parametrize("raw", DOTFILES)
def test_dotfiles(doors, raw):
    world = doors(policy=Policy(dotfiles=False, minimumRate=0))
    assert world.connect().put(b"/" + raw, SMALL).status == 400
    assert world.files == {}


def test_theDirectoryOfTheSenderIsNotTold(doors):
    class Table(Passwords):
        def certified(self, transport):
            return Identity("alice", RelativeName.parse("people/alice"))

    world = doors(authenticator=Table(b""))
    answer = world.connect().put(b"/sub/x", SMALL)
    assert (answer.json["name"], answer.json["wanted"]) == ("sub/x", "sub/x")
    assert answer.fields["location"] == "../sub/x"
    assert answer.json["principal"] == "alice"
    assert world.files == {"people/alice/sub/x": SMALL}


def test_theUrlOfTheReceiver(doors):
    world = doors(url="https://files.example/up/")
    answer = world.connect().ask(b"PUT", b"/a/x", SMALL, host=b"files.example")
    assert answer.fields["location"] == "https://files.example/up/a/x"


# -- the limits and the life of a file


@pytest.mark.parametrize(
    ("policy", "body", "status", "code"),
    [
        (Policy(maxFileSize=4), SMALL, 413, "too-large"),
        (Policy(maxFileSize=4, minimumRate=0), LARGE, 413, "too-large"),
        (Policy(maxBytes=4), SMALL, 403, "quota"),
        (Policy(maxBytes=4), LARGE, 403, "quota"),
        (Policy(maxFiles=0), SMALL, 403, "quota"),
        (Policy(maxTransfers=0), LARGE, 503, "busy"),
    ],
)
def test_limitsHoldBeforeTheBody(doors, policy, body, status, code):
    world = doors(policy=policy)
    client = world.connect()
    client.send(request(b"PUT", b"/x", body, [b"Expect: 100-continue"]).removesuffix(body))
    answer = client.answer()
    assert (answer.status, answer.json["code"]) == (status, code)
    # the body may come in spite of that, or not
    assert answer.fields["connection"] == "close"
    assert ("retry-after" in answer.fields) is (status == 503)
    assert world.files == {}
    assert world.reception.stats().refused == 1


@BODIES
@pytest.mark.parametrize("early", [True, False])
def test_theBodyIsAskedFor(door, body, early):
    client = door.connect()
    raw = request(b"PUT", b"/x", body, [b"Expect: 100-Continue"])
    head = raw.removesuffix(body)
    if early:
        client.send(raw)
    else:
        client.send(head)
        if body:
            assert [answer.status for answer in client.answers()] == [100]
            assert door.counts.stats().interim == 1
            client.send(body)
    assert client.answer().status == 201
    assert door.files == {"x": body}


def test_chunksThatPassTheLimit(doors):
    world = doors(policy=Policy(maxFileSize=5000, minimumRate=0))
    client = world.connect().send(chunked(bytes(100_000)))
    assert client.answer().status == 413
    assert world.files == {}
    assert client.ended


def test_chunksThatAreMoreThanTheRange(door):
    client = door.connect()
    client.send(chunked(bytes(10), fields=[b"Content-Range: bytes 0-8/9"]))
    assert client.answer().status == 413
    client.send(chunked(bytes(8), fields=[b"Content-Range: bytes 0-8/9"]))
    assert client.answer().status == 400
    client.send(chunked(bytes(300_000), fields=[b"Content-Range: bytes 0-300000/300001"]))
    assert client.answer().status == 400
    assert door.files == {}


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("how", ["fin", "reset", "silence"])
def test_aCutBody(doors, body, how):
    world = doors(policy=Policy(idleTimeout=20.0, minimumRate=0))
    client = world.connect().send(request(b"PUT", b"/x", body)[:-1])
    if how == "fin":
        assert client.fin().answer().status == 400
    elif how == "reset":
        client.reset()
        assert world.counts.stats().unanswered == 1
    else:
        answer = client.wait(25.0).answer()
        assert (answer.status, answer.fields["connection"]) == (408, "close")
    assert world.files == {}
    assert not world.reception.active
    assert world.reception.stats().failed == 1
    assert list(world.store.files) == []


def test_aCutAtEveryByte(door):
    raw = request(
        b"PUT",
        b"/x",
        b"content",
        [b"Expect: 100-continue", f"Repr-Digest: {sha(b'content')}".encode()],
    )
    for at in range(len(raw)):
        for end in ("fin", "reset"):
            client = door.connect().send(raw[:at])
            getattr(client, end)()
            assert door.files == {}
            assert door.counts.stats().connections == 0 or client.ended
            client.reset()
    assert door.connect().send(raw).answer().status == 201


@pytest.mark.parametrize("size", [b"1", b"4096"])
def test_aCutAtEveryByteOfChunks(door, size):
    raw = chunked(b"content" * 10, size=int(size), trailers=b"X: y\r\n")
    for at in range(len(raw)):
        client = door.connect().send(raw[:at]).fin()
        assert door.files == {}
        client.reset()
    assert door.connect().send(raw).answer().status == 201


def test_aBodyThatIsTooSlow(doors):
    world = doors(policy=Policy(idleTimeout=10.0, minimumRate=1000.0))
    client = world.connect().send(request(b"PUT", b"/x", LARGE).removesuffix(LARGE))
    for _ in range(12):
        client.send(b"x").wait(1.0)
    answer = client.answer()
    assert (answer.status, answer.json["code"]) == (408, "too-slow")
    assert client.ended


def test_theTimeThatAFileMayTake(doors):
    world = doors(policy=Policy(maxTime=30.0, minimumRate=0))
    client = world.connect().send(request(b"PUT", b"/x", LARGE).removesuffix(LARGE))
    for _ in range(31):
        client.send(b"x" * 1000).wait(1.0)
    assert client.answer().status == 408
    assert world.files == {}


class Broken(MemoryStore):
    why = NoSpace("the disk is full")

    def put(self, offer, data, root):
        raise self.why

    def open(self, offer, holder=None):
        opening = super().open(offer, holder)

        def breakIt(partial):
            partial.commit = lambda root: fail(self.why)
            return partial

        return opening.addCallback(breakIt)


class FullOnTheWay(MemoryStore):
    def open(self, offer, holder=None):
        def breakIt(partial):
            def write(offset, data):
                raise NoSpace("the disk is full")

            partial.write = write
            return partial

        return super().open(offer, holder).addCallback(breakIt)


@pytest.mark.parametrize("borrowed", [False, True])
def test_aDiskThatIsFullOnTheWay(doors, borrowed):
    world = doors(store=FullOnTheWay())
    client = world.connect().send(request(b"PUT", b"/x", LARGE).removesuffix(LARGE))
    freed = []
    if borrowed:  # read from the socket itself
        client.channel.borrowed(memoryview(LARGE[:1000]), lambda: freed.append(True))
        assert freed == [True]
    else:
        client.send(LARGE[:1000])
    client.pump()
    assert (client.answer().status, client.ended) == (507, True)
    assert world.files == {}


@BODIES
@pytest.mark.parametrize(
    ("why", "status", "code"),
    [
        (NoSpace("the disk is full"), 507, "no-space"),
        (SyncFailed("it was not synced"), 500, "sync-failed"),
    ],
)
def test_aStoreThatFails(doors, body, why, status, code):
    store = Broken()
    store.why = why
    world = doors(store=store)
    client = world.connect()
    answer = client.put(b"/x", body)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert ("retry-after" in answer.fields) is (status == 507)
    assert not client.ended
    assert world.counts.stats().refused == {code: 1}


@BODIES
def test_aStoreWithAFault(doors, body, expectFailure):
    expectFailure(ZeroDivisionError)
    store = Broken()
    store.why = ZeroDivisionError()
    answer = doors(store=store).connect().put(b"/x", body)
    assert (answer.status, answer.json["code"]) == (500, "store-error")
    assert b"Traceback" not in answer.body


class Slow(MemoryStore):
    """
    Its writes and publications wait.
    """

    def __init__(self, **more):
        super().__init__(**more)
        self.waits = []

    def put(self, offer, data, root):
        wait = Deferred()
        self.waits.append(wait)
        return wait.addCallback(lambda _: super(Slow, self).put(offer, data, root))

    def open(self, offer, holder=None):
        opening = super().open(offer, holder)

        def slow(partial):
            write = partial.write

            def later(offset, data):
                wait = Deferred()
                self.waits.append(wait)
                return wait.addCallback(lambda _: write(offset, data))

            partial.write = later
            return partial

        return opening.addCallback(slow)

    def go(self):
        waits, self.waits = self.waits, []
        for wait in waits:
            wait.callback(None)


def test_aSlowDiskHoldsTheClientBack(doors):
    store = Slow()
    world = doors(store=store)
    body = bytes(16 << 20)
    client = world.connect().send(request(b"PUT", b"/x", body))
    waited = len(body) - len(client.transport.arriving)
    assert waited <= 6 << 20
    client.wait(1000.0)  # time in which we do not read is not the client's
    while store.waits:
        store.go()
        client.pump()
    assert client.answer().status == 201
    assert world.files == {"x": body}


def test_nothingIsReadBehindASlowPublication(doors):
    store = Slow()
    world = doors(store=store)
    client = world.connect()
    client.send(request(b"PUT", b"/a", SMALL) + request(b"PUT", b"/b", SMALL) * 1000)
    assert client.answers() == []
    assert len(store.waits) == 1
    assert len(client.transport.arriving) > 0 or client.transport.paused
    for _ in range(1001):
        store.go()
        client.pump()
    assert len(client.answers()) == 1001
    assert list(world.files) == ["a", "b"]


def test_whoLeavesDuringAPublicationHasItsFile(doors):
    store = Slow()
    world = doors(store=store)
    client = world.connect().send(request(b"PUT", b"/x", SMALL))
    client.reset()
    store.go()
    assert world.files == {"x": SMALL}
    assert world.counts.stats().unanswered == 1


@implementer(ITransferListener)
class Listener:
    def __init__(self):
        self.events = []

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *details: self.events.append(name)


def test_listenersHear(doors):
    listener = Listener()
    world = doors(listeners=[listener])
    client = world.connect()
    client.put(b"/x", SMALL)
    client.put(b"/y", LARGE)
    client.put(b"/..", SMALL)
    events = [event for event in listener.events if event != "progressed"]
    assert events == ["offered", "published", "offered", "started", "published", "refused"]
    stats = world.reception.stats()
    assert (stats.published, stats.refused, stats.failed) == (2, 1, 0)
    assert world.counts.stats().requests == {"2xx": 2, "4xx": 1}


def test_aHeadOnlyAnswer(door):
    client = door.connect().send(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    (answer,) = parseAnswers(client.transport.written, {0})
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.fields["content-length"]) > 0
