"""
Downloads: who may, one range, and answers that do a browser no harm.
"""

import re

import pytest
from twisted.internet.defer import fail

from connpool.errors import Busy, StoreError
from connpool.transfer import RelativeName
from connpool.transfer.identities import Identity
from connpool.transfer.receive.policy import Policy
from connpool.transfer.web import download
from tests.transfer.hostile import CORPUS
from tests.transfer.web.kit import HOST, request
from tests.transfer.world import Passwords

CONTENT = bytes(range(256)) * 40
HTML = b"Accept: text/html,*/*"


class Table(Passwords):
    def __init__(self, **identity):
        super().__init__(b"")
        self.identity = Identity("alice", **identity)

    def certified(self, transport):
        return self.identity


@pytest.fixture
def libraries(doors, monkeypatch):
    monkeypatch.setattr(download, "PIECE_BYTES", 1000)

    def make(authenticator=None, policy=None, **settings):
        own = Table(directory=RelativeName.parse("alice"), read="own")
        policy = policy or Policy(minimumRate=0, reading=True)
        settings = {"download": True, **settings}
        world = doors(authenticator=authenticator or own, policy=policy, **settings)
        world.store.files.update(
            {
                "alice/a": CONTENT,
                "alice/d/b": b"b",
                "alice/<x> & \u00fc": b"x",
                "alice/.hidden": b"h",
                "bob/secret": b"secret",
            }
        )
        return world

    return make


@pytest.fixture
def client(libraries):
    return libraries().connect()


def get(client, target, *fields):
    return client.ask(b"GET", target, None, fields)


# -- files -------------------------------------------------------------------------------


def test_aFileIsSavedAndNotShown(client):
    answer = get(client, b"/a")
    assert (answer.status, answer.body) == (200, CONTENT)
    fields = answer.fields
    assert fields["content-type"] == "application/octet-stream"
    assert fields["content-disposition"] == "attachment; filename=\"a\"; filename*=UTF-8''a"
    assert fields["content-security-policy"].startswith("sandbox;")
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["cross-origin-resource-policy"] == "same-origin"
    assert fields["accept-ranges"] == "bytes"
    again = get(client, b"/a")
    assert again.fields["etag"] == fields["etag"]
    counts = client.world.counts.stats()
    assert counts.sentBytes == 2 * len(CONTENT)
    assert client.world.reception.stats().readBytes == 2 * len(CONTENT)


def test_headIsTheSameWithoutTheBody(client):
    whole, head = get(client, b"/a"), client.ask(b"HEAD", b"/a")
    assert (head.status, head.body) == (200, b"")
    assert head.fields == whole.fields
    listing = client.ask(b"HEAD", b"/d/")
    assert (listing.status, listing.body) == (200, b"")


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        (b"bytes=0-0", 0, 1),
        (b"bytes=5-9", 5, 10),
        (b"bytes=999-1001", 999, 1002),
        (b"bytes=10000-", 10000, len(CONTENT)),
        (b"bytes=10000-99999999", 10000, len(CONTENT)),
        (b"bytes=-7", len(CONTENT) - 7, len(CONTENT)),
        (b"bytes=-99999999", 0, len(CONTENT)),
    ],
)
def test_oneRange(client, asked, start, end):
    answer = get(client, b"/a", b"Range: " + asked)
    assert (answer.status, answer.body) == (206, CONTENT[start:end])
    assert answer.fields["content-range"] == f"bytes {start}-{end - 1}/{len(CONTENT)}"


@pytest.mark.parametrize(
    "asked",
    [
        *(b"bytes=0-1,3-4", b"bytes=5-4", b"bytes=-", b"bytes=a-b", b"items=0-1", b"bytes 0-1"),
        *(b"bytes=0-" + b"9" * 20, b"bytes=0-0," * 500 + b"1-1", b""),
    ],
)
def test_whatIsNoSingleRangeGetsAll(client, asked):
    answer = get(client, b"/a", b"Range: " + asked)
    assert (answer.status, answer.body) == (200, CONTENT)


def test_rangesBehindTheEnd(client):
    for asked in (b"bytes=10240-", b"bytes=99999999999-", b"bytes=-0"):
        answer = get(client, b"/a", b"Range: " + asked)
        assert answer.status == 416
        assert answer.fields["content-range"] == f"bytes */{len(CONTENT)}"


def test_goingOnWithTheSameVersionOnly(client):
    tag = get(client, b"/a").fields["etag"].encode()
    half = b"Range: bytes=5000-"
    assert get(client, b"/a", half, b"If-Range: " + tag).status == 206
    for other in (b'"0"', b"Sun, 06 Nov 1994 08:49:37 GMT"):
        assert get(client, b"/a", half, b"If-Range: " + other).status == 200
    client.world.store.files["alice/a"] = CONTENT[::-1]
    answer = get(client, b"/a", half, b"If-Range: " + tag)
    assert (answer.status, answer.body) == (200, CONTENT[::-1])


CONDITIONS = [
    (304, b"If-None-Match: TAG"),
    (304, b"If-None-Match: W/TAG"),
    (304, b'If-None-Match: "0", TAG'),
    (304, b"If-None-Match: *"),
    (200, b'If-None-Match: "0"'),
    (200, b"If-None-Match: "),
    (304, b"If-Modified-Since: DATE"),
    (200, b"If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT"),
    (200, b"If-Modified-Since: yesterday"),
    (200, b"If-Modified-Since: Sun, 06 Nov 99999999999 08:49:37 GMT"),
    (200, b'If-None-Match: "0"', b"If-Modified-Since: DATE"),
    (200, b"If-Match: TAG"),
    (200, b"If-Match: *"),
    (412, b'If-Match: "0"'),
    (412, b'If-Match: "0"', b"If-None-Match: TAG"),
    (304, b"If-Match: TAG", b"If-None-Match: TAG"),
    (200, b"If-Unmodified-Since: DATE"),
    (412, b"If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT"),
    (200, b"If-Match: TAG", b"If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT"),
    (200, b"If-Unmodified-Since: x"),
]


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("asked", CONDITIONS, ids=str)
def test_conditions(client, asked, method):
    """
    A client that has this version does not get it again, and one that wants another learns so.
    """
    client.world.store._modified["alice/a"] = 10**18
    have = get(client, b"/a").fields
    status, *fields = asked
    for name, value in ((b"TAG", have["etag"]), (b"DATE", have["last-modified"])):
        fields = [field.replace(name, value.encode()) for field in fields]
    # a condition comes before the range
    answer = client.ask(method, b"/a", None, [*fields, b"Range: bytes=0-"])
    assert answer.status == (206 if status == 200 else status)
    if status == 304:
        assert answer.body == b""
        assert answer.fields["etag"] == have["etag"]
        assert "content-disposition" not in answer.fields


def test_anEmptyFile(client):
    client.world.store.files["alice/e"] = b""
    assert get(client, b"/e").body == b""
    assert get(client, b"/e", b"Range: bytes=0-").status == 416


def test_aNameIsNoField(client):
    name = 'a"b;\u00fc\\x'
    client.world.store.files["alice/" + name] = b"x"
    answer = get(client, b"/a%22b;%C3%BC%5Cx")
    assert answer.fields["content-disposition"] == (
        "attachment; filename=\"a_b__x\"; filename*=UTF-8''a%22b%3B%C3%BC%5Cx"
    ) or answer.fields["content-disposition"].endswith("filename*=UTF-8''a%22b%3B%C3%BC%5Cx")
    plain = re.search(r'filename="([^"]*)"', answer.fields["content-disposition"])[1]
    assert re.fullmatch(r"[A-Za-z0-9 ._()+-]+", plain)


def test_severalRequestsOfOneConnection(client):
    client.send(request(b"GET", b"/a") + request(b"GET", b"/d/b"))
    bodies = [answer.body for answer in client.answers()]
    assert bodies == [CONTENT, b"b"]


# -- who may -----------------------------------------------------------------------------


def test_whatMayNotBeReadIsAsIfItWereNotThere(client):
    for target in ("nothing", "d", "bob/secret", "a/x", "nothing/", "a/"):
        answer = get(client, f"/{target}".encode())
        assert answer.status == 404
        assert answer.json["detail"] == f'there is no "{target.removesuffix("/")}"'
    assert get(client, b"/.connpool/done").status == 404
    for hostile in CORPUS:
        if hostile.raw in {b"", b"a"}:
            continue  # the page, and a file that is there
        coded = b"".join(b"%%%02X" % byte for byte in hostile.raw[:2000])
        assert get(client, b"/" + coded).status in {400, 404}


@pytest.mark.parametrize("identity", [{"directory": RelativeName.parse("alice")}, {}])
def test_whoMayNotReadLearnsNothing(libraries, identity):
    client = libraries(Table(**identity)).connect()
    answers = [get(client, target) for target in (b"/a", b"/no", b"/d/", b"/.connpool/list/")]
    assert {answer.status for answer in answers} == {403}
    assert len({answer.body for answer in answers}) == 1


def test_withoutThePasswordThereIsNothing(libraries):
    client = libraries(Passwords(b"right")).connect()
    for target in (b"/a", b"/no", b"/d/", b"/.connpool/list/"):
        answer = get(client, target)
        assert answer.status == 401
        assert "www-authenticate" in answer.fields


def test_whereItIsNotAskedForThereAreNoDownloads(libraries):
    client = libraries(download=False).connect()
    assert get(client, b"/a").status == 405
    assert get(client, b"/d/").status == 405
    assert get(client, b"/.connpool/list/").status == 404


def test_anotherHostIsNotAnswered(client):
    answer = client.ask(b"GET", b"/a", host=b"evil.example")
    assert answer.status == 421
    assert HOST != b"evil.example"


# -- lists -------------------------------------------------------------------------------


def test_aListForPrograms(client):
    answer = get(client, b"/.connpool/list/")
    assert answer.fields["content-type"] == "application/json"
    names = {each["name"]: each["kind"] for each in answer.json["entries"]}
    assert names == {".hidden": "file", "<x> & \u00fc": "file", "a": "file", "d": "directory"}
    assert not answer.json["more"]
    assert get(client, b"/d/").json == {
        "path": "d",
        "entries": [{"name": "b", "kind": "file", "size": 1, "modified": 0}],
        "more": False,
    }


def test_aListForPeople(client):
    answer = get(client, b"/.connpool/list/", HTML)
    assert answer.fields["content-type"] == "text/html; charset=utf-8"
    assert "script" not in answer.fields["content-security-policy"]
    text = answer.body.decode()
    links = dict(re.findall(r'<a href="([^"]*)">([^<]*)</a>', text))
    assert links["../../%3Cx%3E%20%26%20%C3%BC"] == "&lt;x&gt; &amp; \u00fc"
    assert links["../../d/"] == "d/"
    assert "<x>" not in text
    inside = get(client, b"/d/", HTML).body.decode()
    assert re.findall(r'<a href="([^"]*)">', inside) == ["../.connpool/list/", "./b"]


def test_aListHasItsEnd(client, monkeypatch):
    monkeypatch.setattr(download, "MAX_NAMES", 2)
    answer = get(client, b"/.connpool/list/")
    assert len(answer.json["entries"]) == 2
    assert answer.json["more"]
    assert b"The first 2 names" in get(client, b"/.connpool/list/", HTML).body


# -- on the way --------------------------------------------------------------------------


def stopReading(client):
    """
    Say after the first bytes of an answer that the client does not read.
    """
    write = client.transport.write

    def wrote(data):
        write(data)
        client.transport.write = write
        client.channel.pauseProducing()

    client.transport.write = wrote


def test_aClientThatDoesNotReadIsWaitedFor(client):
    world = client.world
    stopReading(client)
    client.send(request(b"GET", b"/a"))
    before = world.reception.stats().readBytes
    assert before <= 2000, "the next piece is read ahead, and no more"
    client.channel.resumeProducing()
    client.pump()
    assert client.answer().body == CONTENT


def test_andLeftAfterAWhile(client):
    stopReading(client)
    client.send(request(b"GET", b"/a"))
    client.wait(3600)
    assert client.transport.lost


def test_aClientThatLeaves(client):
    stopReading(client)
    client.send(request(b"GET", b"/a"))
    client.reset()
    assert client.world.counts.stats().unanswered == 1


@pytest.mark.parametrize("how", ["changed", "busy", "broken"])
def test_aFileThatCannotBeReadToItsEnd(client, how):
    """
    The connection breaks: a client knows by the length that it has not got all.
    """
    store = client.world.store
    real = store.read

    def read(name, start, end):
        if start < 3000:
            return real(name, start, end)
        if how == "changed":
            store.files["alice/a"] = CONTENT[::-1]
            return real(name, start, end)
        return fail(Busy("x") if how == "busy" else StoreError("x"))

    store.read = read
    client.send(request(b"GET", b"/a"))
    assert client.transport.lost
    head, _, body = bytes(client.transport.written).partition(b"\r\n\r\n")
    assert b"Content-Length: 10240" in head
    assert body == CONTENT[:3000]


def test_aStopLetsADownloadEnd(client):
    stopReading(client)
    client.send(request(b"GET", b"/a"))
    client.channel.drain()
    client.channel.resumeProducing()
    client.pump()
    assert client.answer().body == CONTENT
    assert client.ended


def test_dotfiles(libraries):
    client = libraries(policy=Policy(minimumRate=0, reading=True, dotfiles=False)).connect()
    assert get(client, b"/.hidden").status == 404
    assert ".hidden" not in get(client, b"/.connpool/list/").body.decode()


def test_aStoreThatIsSlow(client, monkeypatch):
    monkeypatch.setattr(client.world.store, "read", lambda *_: fail(Busy("x")))
    answer = get(client, b"/a")
    assert answer.status == 503
    assert "retry-after" in answer.fields
