"""
Uploads by tus: its requests and answers, byte by byte, in memory.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.components import proxyForInterface
from zope.interface import implementer

from connpool.errors import NoSpace
from connpool.interfaces import IAuthenticator, IFileStore
from connpool.transfer.digests import DIGESTS as DIGESTED
from connpool.transfer.digests import rootOf
from connpool.transfer.identities import Identity
from connpool.transfer.receive.policy import Policy
from connpool.transfer.receive.reception import Incoming
from connpool.transfer.stores import LocalStore, MemoryStore
from connpool.transfer.stores.partialdir import MAX_PARTIALS
from connpool.transfer.web.creations import MAX_OWN_CREATIONS
from connpool.transfer.web.uploads import OPEN_SECONDS
from tests.transfer.stores.kit import InlineReactor, visible
from tests.transfer.stores.onpartials import parts
from tests.transfer.web.kit import World, request
from tests.transfer.web.test_put import Slow

TUS = b"Tus-Resumable: 1.0.0"
BYTES = b"Content-Type: application/offset+octet-stream"
CONTENT = bytes(range(256)) * 20


@implementer(IAuthenticator)
class Users:
    """
    Believes everybody.
    """

    takesPasswords = True

    def certified(self, transport):
        return None

    def password(self, transport, user, secret):
        return succeed(Identity(principal=user))


def coded(value: bytes) -> bytes:
    return base64.b64encode(value)


def create(client, size=5120, *fields, name=b"x.bin", body=None, target=b"/"):
    fields = [TUS, *fields]
    if size is not None:
        fields.append(b"Upload-Length: %d" % size)
    if name is not None:
        fields.append(b"Upload-Metadata: filename " + coded(name))
    if body is not None:
        fields.append(BYTES)
    return client.ask(b"POST", target, body or b"", fields)


def urlOf(answer):
    assert answer.status == 201, answer
    found = re.fullmatch(
        r"(?:\./|(?:\.\./)+)(\.connpool/u/[\w-]{43,51})", answer.fields["location"]
    )
    return b"/" + found[1].encode()


def patch(client, url, at, data, *fields):
    return client.ask(b"PATCH", url, data, [TUS, BYTES, b"Upload-Offset: %d" % at, *fields])


def head(client, url):
    """
    The offset that is told.
    """
    told = client.ask(b"HEAD", url, None, [TUS])
    assert told.status == 200, told
    assert told.fields["tus-resumable"] == "1.0.0"
    assert told.fields["cache-control"] == "no-store"
    return int(told.fields["upload-offset"]), told


# -- creation


@pytest.mark.parametrize(
    ("target", "location", "file"),
    [
        (b"/", "./.connpool/u/", "x.bin"),
        (b"/a/", "../.connpool/u/", "a/x.bin"),
        (b"/a/b%20c/", "../../.connpool/u/", "a/b c/x.bin"),
    ],
)
def test_anUploadInRequests(door, target, location, file):
    client = door.connect()
    answer = create(client, target=target)
    assert answer.fields["location"].startswith(location)
    assert answer.fields["upload-offset"] == "0"
    assert answer.fields["upload-expires"] == "Thu, 01 Jan 1970 01:00:00 GMT"
    url = urlOf(answer)
    assert head(client, url)[0] == 0
    at = 0
    for end in (1, 1000, 1000, 4096, len(CONTENT)):
        answer = patch(client, url, at, CONTENT[at:end])
        assert (answer.status, answer.fields["upload-offset"]) == (204, str(end))
        assert answer.body == b""
        at, told = head(client, url)
        assert (at, told.fields["upload-length"]) == (end, str(len(CONTENT)))
        if end < len(CONTENT):
            assert told.fields["upload-metadata"] == "filename " + coded(b"x.bin").decode()
        assert (file in door.files) == (end == len(CONTENT))
    assert door.files == {file: CONTENT}
    receipt = client.ask(b"GET", url).json["receipt"]
    assert (receipt["name"], receipt["size"], receipt["protocol"]) == (file, len(CONTENT), "web")
    assert (receipt["integrity"], receipt["root"]) == ("unverified", None)
    assert door.reception.stats().published == 1


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        (b"relativePath ZC9l,filename eA==,name eQ==", "d/e"),
        (b"relativePath bnVsbA==,filename eA==", "x"),
        (b"relativePath ,filename eA==", "x"),
        (b"name eQ==,filetype dGV4dC9wbGFpbg==,is_confidential", "y"),
        (b"filename w6TMiA==", "ä\u0308"),
        (b"filename PGltZyBzcmM9eCBvbmVycm9yPWFsZXJ0KDEpPg==", None),
        (b"type eA==", ""),
        (b"", ""),
    ],
)
def test_names(doors, metadata, name):
    world = doors(policy=Policy(minimumRate=0, names="posix"))
    client = world.connect()
    fields = [TUS, b"Upload-Length: 3", BYTES, b"Upload-Metadata: " + metadata]
    answer = client.ask(b"POST", b"/up/", b"abc", fields)
    assert answer.fields["upload-offset"] == "3"
    (path,) = world.files
    receipt = client.ask(b"GET", urlOf(answer)).json["receipt"]
    if name is None:
        assert path == "up/<img src=x onerror=alert(1)>"
    else:
        assert path == "up/" + (name or receipt["transferId"])


@pytest.mark.parametrize(
    "metadata",
    [
        b"filename !!!",
        b"filename eA",
        b"filename eA=",
        b"filename eA==,filename eQ==",
        b"filename eA==,,name eQ==",
        b"filename  eA==",
        b"filename eA== eA==",
        b"filename Li4veA==",  # ../x
        b"relativePath L3g=",  # /x
        b"filename DQpTZXQtQ29va2llOiB4PTE=",  # CR LF
        b"filename /w==",  # not UTF-8
        b"filename " + base64.b64encode(b".connpool/x"),
        b"filename " + base64.b64encode(b"x" * 256),
        b"filename AA==",
    ],
)
def test_hostileMetadata(door, metadata):
    fields = [TUS, b"Upload-Length: 3", b"Upload-Metadata: " + metadata]
    answer = door.connect().ask(b"POST", b"/", b"", fields)
    assert answer.status == 400
    assert answer.fields["content-type"] == "application/problem+json"
    assert set(answer.json) == {"title", "status", "detail", "code"}
    assert "\n" not in answer.json["detail"]
    assert door.reception.stats().active == 0


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([], 400),
        *(([b"Upload-Length: " + each], 400) for each in (b"-1", b"+1", b"1.0", b"1e3", b"0x10")),
        *(([b"Upload-Length: " + each], 400) for each in (b"", b"1 2", b"%d" % 2**63, b"1" * 31)),
        ([b"Upload-Length: 3", b"Upload-Length: 3"], 400),
        ([b"Upload-Length: 3", b"Upload-Defer-Length: 1"], 400),
        ([b"Upload-Defer-Length: 2"], 400),
        ([b"Upload-Defer-Length: 1"], 201),
        ([b"Upload-Length: %d" % (2**63 - 1)], 413),
        ([b"Upload-Length: 3"], 201),
        ([b"Upload-Length: 3", b"Upload-Concat: partial"], 501),
        ([b"Upload-Concat: final;./u/x ./u/y"], 501),
        ([b"Upload-Length: 3", b"Prefer: durability=much"], 400),
        ([b"Upload-Length: 3", b"Prefer: if-exists=replace"], 403),
        ([b"Upload-Length: 3", b"If-Match: *"], 412),
    ],
)
def test_fieldsOfACreation(doors, fields, status):
    world = doors(policy=Policy(minimumRate=0, maxFileSize=1 << 40))
    answer = world.connect().ask(b"POST", b"/", b"", [TUS, *fields])
    assert answer.status == status
    assert answer.fields["tus-resumable"] == "1.0.0"


def test_theVersion(door):
    client = door.connect()
    url = urlOf(create(client))
    for version in ([], [b"Tus-Resumable: 0.2.2"], [b"Tus-Resumable: 1.0"]):
        for method, target in ((b"POST", b"/"), (b"PATCH", url), (b"DELETE", url)):
            answer = client.ask(method, target, b"", [*version, b"Upload-Length: 1"])
            assert (answer.status, answer.fields["tus-version"]) == (412, "1.0.0")
        for method in (b"HEAD", b"GET"):
            assert client.ask(method, url, None, version).status == 200


def test_contentTypes(door):
    client = door.connect()
    url = urlOf(create(client))
    for fields in ([], [b"Content-Type: application/octet-stream"], [BYTES + b"; charset=utf-8"]):
        asked = [TUS, b"Upload-Offset: 0", b"Upload-Length: 5120", *fields]
        assert door.connect().ask(b"PATCH", url, b"abc", asked).status == 415
        assert door.connect().ask(b"POST", b"/", b"abc", asked).status == 415
    assert head(client, url)[0] == 0


def test_whatIsOffered(doors):
    world = doors(policy=Policy(minimumRate=0, maxFileSize=1000))
    answer = world.connect().ask(b"OPTIONS", b"/")
    assert answer.status == 204
    assert answer.fields["tus-version"] == answer.fields["tus-resumable"] == "1.0.0"
    assert answer.fields["tus-max-size"] == "1000"
    assert answer.fields["tus-extension"].split(",") == [
        *("creation", "creation-with-upload", "creation-defer-length", "termination"),
        *("checksum", "checksum-trailer", "expiration"),
    ]
    assert answer.fields["tus-checksum-algorithm"] == "sha256,sha512,sha1,md5,crc32"
    answer = create(world.connect(), 1001)
    assert (answer.status, answer.json["code"]) == (413, "too-large")
    assert world.reception.stats().refused == 1


def test_aStoreThatTakesWholeFilesOnly(doors):
    class Whole(proxyForInterface(IFileStore, "_store")):
        pass

    store = Whole(MemoryStore())
    world = doors(store=store)
    client = world.connect()
    assert "tus-version" not in client.ask(b"OPTIONS", b"/").fields
    answer = create(client)
    assert (answer.status, answer.json["code"]) == (501, "unsupported")
    assert client.ask(b"HEAD", b"/.connpool/u/" + b"A" * 43, None, [TUS]).status == 404
    assert client.put(b"/x", b"abc").status == 201


@pytest.mark.parametrize("size", [0, None])
def test_emptyFiles(door, size):
    client = door.connect()
    fields = [b"Upload-Defer-Length: 1"] if size is None else []
    answer = create(client, size, *fields)
    url = urlOf(answer)
    if size is None:
        assert door.files == {}
        assert patch(client, url, 0, b"", b"Upload-Length: 0").fields["upload-offset"] == "0"
    assert door.files == {"x.bin": b""}
    offset, told = head(client, url)
    assert (offset, told.fields["upload-length"]) == (0, "0")
    assert patch(client, url, 0, b"").status == 204
    assert door.reception.stats().published == 1


def test_anEmptyFileInChunks(door):
    """
    The offset is the length, so it has to be published.
    """
    name = b"Upload-Metadata: filename " + coded(b"x.bin")
    fields = [TUS, BYTES, b"Upload-Length: 0", name, b"Transfer-Encoding: chunked"]
    client = door.connect().send(request(b"POST", b"/", None, fields) + b"0\r\n\r\n")
    assert client.answer().fields["upload-offset"] == "0"
    assert door.files == {"x.bin": b""}
    client.send(request(b"POST", b"/", None, fields) + b"1\r\nx\r\n0\r\n\r\n")
    assert client.answer().status == 413
    assert door.files == {"x.bin": b""}
    assert not door.reception.active


def test_aSmallFileWithItsCreation(door, monkeypatch):
    """
    It is stored in one piece: no partial is opened.
    """
    monkeypatch.setattr(door.store, "open", None)
    client = door.connect()
    wrong = create(client, 5120, checksum(b"sha1", b"other"), body=CONTENT)
    assert wrong.status == 460
    client.send(request(b"POST", b"/", CONTENT, [TUS, BYTES, b"Upload-Length: 5120"])[:-1]).fin()
    assert client.answer().status == 400
    assert door.files == {}
    for name, digest, integrity in (
        (b"a", [], "unverified"),
        (b"b", [checksum(b"sha1", CONTENT)], "verified"),
        (b"c", [checksum(b"crc32", CONTENT)], "unverified"),
    ):
        answer = create(door.connect(), 5120, *digest, name=name, body=CONTENT)
        assert answer.fields["upload-offset"] == "5120"
        assert answer.json["receipt"]["integrity"] == integrity
        assert head(door.connect(), urlOf(answer))[0] == 5120
        assert door.files[name.decode()] == CONTENT
    assert door.reception.stats().failed == 2


def test_aRequestWhileAnUploadIsRemoved(door, monkeypatch):
    """
    It does not bring the upload back.
    """
    client, other, third = door.connect(), door.connect(), door.connect()
    url = urlOf(create(client, body=CONTENT[:100]))
    held = []
    abort = Incoming.abort

    async def slow(incoming, why):
        held.append(Deferred())
        await held[-1]
        await abort(incoming, why)

    monkeypatch.setattr(Incoming, "abort", slow)
    client.send(request(b"DELETE", url, None, [TUS]))
    other.send(request(b"HEAD", url, None, [TUS]))
    fields = [TUS, BYTES, b"Upload-Offset: 100"]
    third.send(request(b"PATCH", url, CONTENT[100:], fields))
    (deferred,) = held
    deferred.callback(None)
    other.bare.add(0)
    assert [each.pump().answer().status for each in (client, other, third)] == [204, 404, 404]
    assert not door.reception.active
    assert door.files == {}


def test_aLengthThatIsDeclaredLater(door):
    client = door.connect()
    url = urlOf(create(client, None, b"Upload-Defer-Length: 1"))
    told = head(client, url)[1]
    assert told.fields["upload-defer-length"] == "1"
    assert "upload-length" not in told.fields
    assert patch(client, url, 0, CONTENT[:3000]).fields["upload-offset"] == "3000"
    # below what is held, and a wrong offset with it
    assert patch(client, url, 3000, b"", b"Upload-Length: 2999").status == 413
    assert patch(door.connect(), url, 10, b"x", b"Upload-Length: 5120").status == 409
    assert "upload-defer-length" in head(client, url)[1].fields
    answer = patch(client, url, 3000, b"", b"Upload-Length: 5120")
    assert answer.fields["upload-offset"] == "3000"
    assert head(client, url)[1].fields["upload-length"] == "5120"
    assert patch(client, url, 3000, CONTENT[3000:], b"Upload-Length: 5121").status == 400
    assert patch(door.connect(), url, 3000, CONTENT[3000:], b"Upload-Length: 5120").status == 204
    assert door.files == {"x.bin": CONTENT}


def test_aLengthThatIsWhatCame(door):
    client = door.connect()
    url = urlOf(create(client, None, b"Upload-Defer-Length: 1", body=CONTENT))
    assert head(client, url)[0] == len(CONTENT)
    assert door.files == {}
    answer = patch(client, url, len(CONTENT), b"", b"Upload-Length: %d" % len(CONTENT))
    assert answer.fields["upload-offset"] == str(len(CONTENT))
    assert door.files == {"x.bin": CONTENT}


def test_timesAndTerms(door):
    client = door.connect()
    metadata = b"Upload-Metadata: filename eA==,lastModified " + coded(b"1600000000123")
    fields = [TUS, BYTES, b"Upload-Length: 3", metadata, b"Prefer: durability=none"]
    client.ask(b"POST", b"/", b"abc", fields)
    assert door.store._modified["x"] == 1600000000123 * 10**6
    fields[3] = b"Upload-Metadata: filename eA==,mtime " + coded(b"tomorrow")
    fields[4] = b"If-None-Match: *"
    answer = client.ask(b"POST", b"/", b"abd", fields)
    assert (answer.status, answer.json["code"]) == (422, "exists")
    assert door.files == {"x": b"abc"}


# -- offsets


@pytest.mark.parametrize(
    ("offset", "status"),
    [
        *((each, 400) for each in (None, b"-1", b"+5", b"5.0", b"0x5", b"", b"%d" % 2**63)),
        *((each, 409) for each in (b"0", b"4", b"6")),
        (b"5120", 413),  # and more bytes than are left
        (b"5", 204),
    ],
)
def test_theOffsetOfARequest(door, offset, status):
    client = door.connect()
    url = urlOf(create(client, body=CONTENT[:5]))
    fields = [] if offset is None else [b"Upload-Offset: " + offset]
    answer = door.connect().ask(b"PATCH", url, CONTENT[5:105], [TUS, BYTES, *fields])
    assert answer.status == status
    if status == 409:
        assert answer.fields["upload-offset"] == "5"
    assert head(client, url)[0] == (105 if status == 204 else 5)


def test_moreBytesThanAreLeft(door):
    client = door.connect()
    url = urlOf(create(client, body=CONTENT[:5000]))
    assert patch(door.connect(), url, 5000, CONTENT[:121]).status == 413
    raw = b"79\r\n" + CONTENT[:121] + b"\r\n0\r\n\r\n"
    fields = [TUS, BYTES, b"Upload-Offset: 5000", b"Transfer-Encoding: chunked"]
    other = door.connect()
    assert other.send(request(b"PATCH", url, None, fields) + raw).answer().status == 413
    assert door.files == {}
    assert patch(client, url, 5000, CONTENT[5000:]).status == 204
    assert door.files == {"x.bin": CONTENT}


def test_chunks(door):
    client = door.connect()
    url = urlOf(create(client))
    raw = b"".join(b"%x\r\n%b\r\n" % (320, CONTENT[at : at + 320]) for at in range(0, 5120, 320))
    fields = [TUS, BYTES, b"Upload-Offset: 0", b"Transfer-Encoding: chunked"]
    answer = client.send(request(b"PATCH", url, None, fields) + raw + b"0\r\n\r\n").answer()
    assert answer.fields["upload-offset"] == "5120"
    assert door.files == {"x.bin": CONTENT}


@pytest.mark.parametrize("how", ["fin", "reset", "silence", "take-over"])
def test_aCutAtEveryByte(door, how):
    content = CONTENT[:60]
    for cut in range(1, 200):
        client = door.connect()
        url = urlOf(create(client, len(content), name=b"%d" % cut))
        fields = [TUS, BYTES, b"Upload-Offset: 0"]
        wire = request(b"PATCH", url, content, fields)
        at = cut % len(wire)
        client.send(wire[:at])
        if how in {"fin", "reset"}:
            getattr(client, how)()
        other = door.connect()
        offset = head(other, url)[0]
        assert offset == max(0, at - (len(wire) - len(content)))
        if how == "take-over" and at > len(wire) - len(content):
            # the evicted one hears it, and its further bytes go nowhere
            client.send(wire[at:])
            answer = client.answer()
            assert (answer.status, answer.json["code"]) == (400, "conflict-takeover")
            assert client.ended
        assert patch(other, url, offset, content[offset:]).status == 204
        assert door.files[str(cut)] == content
    assert door.reception.stats().failed == 0


def test_theNewestRequestWins(door):
    url = urlOf(create(door.connect()))
    clients = [door.connect() for _ in range(100)]
    for number, client in enumerate(clients):
        # the next one begins where the one before it was broken off
        at = 10 * number
        fields = [TUS, BYTES, b"Upload-Offset: %d" % at]
        wire = request(b"PATCH", url, CONTENT[at:], fields)
        client.send(wire[: len(wire) - len(CONTENT) + at + 10])
    for client in clients[:-1]:
        assert client.answer().json["code"] == "conflict-takeover"
    told = [door.connect() for _ in range(50)]
    for each in told:
        assert head(each, url)[0] == 1000
    assert clients[-1].answer().json["code"] == "conflict-takeover"
    assert patch(told[0], url, 1000, CONTENT[1000:]).status == 204
    assert door.files == {"x.bin": CONTENT}


def test_theLastAnswerWasLost(door):
    url = urlOf(create(door.connect(), body=CONTENT[:100]))
    client = door.connect()
    client.send(request(b"PATCH", url, CONTENT[100:], [TUS, BYTES, b"Upload-Offset: 100"]))
    client.reset()
    for _ in range(10):
        other = door.connect()
        assert head(other, url)[0] == len(CONTENT)
        assert patch(other, url, 100, CONTENT[100:]).fields["upload-offset"] == "5120"
    assert patch(door.connect(), url, len(CONTENT), b"").status == 204
    answer = patch(door.connect(), url, 100, b"x")
    assert (answer.status, answer.fields["upload-offset"]) == (409, "5120")
    assert door.files == {"x.bin": CONTENT}
    assert door.reception.stats().published == 1


# -- the end, and its failures


class Full(MemoryStore):
    """
    One whose disk is full when a file is to be published.
    """

    full = True

    def _place(self, offer, same):
        if self.full and offer.name.path == "x.bin":
            raise NoSpace("the disk is full")
        return super()._place(offer, same)

    def foresee(self, offer, root, ahead, whole):
        return succeed("stored")


def test_aFullDiskAtTheEnd(doors):
    world = doors(store=Full())
    client = world.connect()
    url = urlOf(create(client))
    answer = patch(client, url, 0, CONTENT)
    assert (answer.status, answer.json["code"]) == (507, "no-space")
    assert "retry-after" in answer.fields
    for _ in range(2):
        # the last byte counts as missing
        assert head(client, url)[0] == len(CONTENT) - 1
        assert patch(world.connect(), url, len(CONTENT) - 1, CONTENT[-1:]).status == 507
    assert patch(client, url, len(CONTENT) - 1, b"").fields["upload-offset"] == "5119"
    world.store.full = False
    assert patch(world.connect(), url, len(CONTENT) - 1, b"x").status == 460
    assert patch(world.connect(), url, len(CONTENT) - 1, b"xy").status == 413
    assert patch(world.connect(), url, len(CONTENT), b"").status == 409
    sha1 = coded(hashlib.sha1(CONTENT[-1:]).digest())
    wrong = patch(client, url, 5119, CONTENT[-1:], b"Upload-Checksum: sha1 " + coded(b"x" * 20))
    assert wrong.status == 460
    answer = patch(client, url, 5119, CONTENT[-1:], b"Upload-Checksum: sha1 " + sha1)
    assert (answer.status, answer.fields["upload-offset"]) == (204, "5120")
    assert world.files == {"x.bin": CONTENT}
    assert world.reception.stats().published == 1


def test_theNameIsTakenMeanwhile(door):
    client = door.connect()
    url = urlOf(create(client, len(CONTENT), b"If-None-Match: *"))
    patch(client, url, 0, CONTENT[:-1])
    door.connect().put(b"/x.bin", b"other")
    answer = patch(client, url, len(CONTENT) - 1, CONTENT[-1:])
    assert (answer.status, answer.json["code"]) == (422, "exists")
    assert client.ask(b"HEAD", url, None, [TUS]).status == 404
    assert door.files == {"x.bin": b"other"}
    assert not door.store._partials


def test_thePolicyIsAskedAgain(door):
    client = door.connect()
    url = urlOf(create(client, name=b".x", body=CONTENT[:-1]))
    door.close()
    world = World(policy=Policy(minimumRate=0, dotfiles=False), store=door.store)
    answer = patch(world.connect(), url, len(CONTENT) - 1, CONTENT[-1:])
    assert (answer.status, answer.json["code"]) == (400, "name-refused")
    assert door.files == {}
    world.close()


# -- checksums

DIGESTS = {
    b"sha256": lambda data: hashlib.sha256(data).digest(),
    b"sha512": lambda data: hashlib.sha512(data).digest(),
    b"sha1": lambda data: hashlib.sha1(data).digest(),
    b"md5": lambda data: hashlib.md5(data).digest(),
    b"crc32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
}


def checksum(algorithm, data):
    return b"Upload-Checksum: %b %b" % (algorithm, coded(DIGESTS[algorithm](data)))


@pytest.mark.parametrize("algorithm", DIGESTS)
def test_checksums(door, algorithm):
    client = door.connect()
    url = urlOf(create(client))
    parts = [CONTENT[:1000], CONTENT[1000:]]
    for at, part in zip((0, 1000), parts, strict=True):
        flipped = bytes([part[0] ^ 1]) + part[1:]
        for _ in range(2):
            answer = patch(client, url, at, flipped, checksum(algorithm, part))
            assert (answer.status, answer.json["code"]) == (460, "digest-mismatch")
            assert head(client, url)[0] == at
        assert patch(client, url, at, part, checksum(algorithm, part)).status == 204
    receipt = client.ask(b"GET", url).json["receipt"]
    verified = algorithm not in {b"md5", b"crc32"}
    assert receipt["integrity"] == ("verified" if verified else "unverified")
    blocks = [DIGESTED["blake3"].of(CONTENT)]
    root = rootOf(DIGESTED["blake3"], len(CONTENT), 1 << 20, blocks).hex()
    assert receipt["root"] == (root if verified else None)
    assert door.files == {"x.bin": CONTENT}


@pytest.mark.parametrize("wrong", [b"sha1", b"sha1 !", b"sha1 eA==", b"sha3 eA==", b"", b"SHA1 x"])
def test_checksumsThatAreNone(door, wrong):
    client = door.connect()
    url = urlOf(create(client))
    answer = patch(client, url, 0, CONTENT, b"Upload-Checksum: " + wrong)
    assert answer.status == 400
    hexadecimal = coded(hashlib.sha1(CONTENT).hexdigest().encode())
    answer = patch(door.connect(), url, 0, CONTENT, b"Upload-Checksum: sha1 " + hexadecimal)
    assert answer.status == 400
    assert head(door.connect(), url)[0] == 0


@pytest.mark.parametrize("trailer", [b"right", b"wrong", b"none", b"weak"])
def test_aChecksumBehindTheBody(door, trailer):
    client = door.connect()
    url = urlOf(create(client))
    fields = [TUS, BYTES, b"Upload-Offset: 0", b"Transfer-Encoding: chunked"]
    fields.append(b"Trailer: Upload-Checksum")
    told = {
        b"right": checksum(b"sha256", CONTENT) + b"\r\n",
        b"weak": checksum(b"crc32", CONTENT) + b"\r\n",
        b"wrong": checksum(b"sha256", b"") + b"\r\n",
        b"none": b"",
    }[trailer]
    wire = request(b"PATCH", url, None, fields)
    wire += b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(CONTENT), CONTENT, told)
    answer = client.send(wire).answer()
    status = {b"wrong": 460, b"none": 400}.get(trailer, 204)
    assert answer.status == status
    offset, _ = head(door.connect(), url)
    assert offset == (len(CONTENT) if status == 204 else 0)
    if status == 204:
        receipt = door.connect().ask(b"GET", url).json["receipt"]
        assert receipt["integrity"] == ("verified" if trailer == b"right" else "unverified")


def test_oneRequestWithoutAChecksum(door):
    client = door.connect()
    url = urlOf(create(client))
    patch(client, url, 0, CONTENT[:10], checksum(b"sha256", CONTENT[:10]))
    patch(client, url, 10, CONTENT[10:20])
    patch(client, url, 20, CONTENT[20:], checksum(b"sha256", CONTENT[20:]))
    assert client.ask(b"GET", url).json["receipt"]["integrity"] == "unverified"


def test_aBrokenOffRequestWithAChecksum(door):
    client = door.connect()
    url = urlOf(create(client, body=CONTENT[:100]))
    fields = [TUS, BYTES, b"Upload-Offset: 100", checksum(b"sha1", CONTENT[100:])]
    client.send(request(b"PATCH", url, CONTENT[100:], fields)[:-5])
    client.reset()
    client = door.connect()
    assert head(client, url)[0] == 100
    assert patch(client, url, 100, CONTENT[100:], fields[-1]).status == 204
    assert door.files == {"x.bin": CONTENT}


def test_theDigestOfAll(doors):
    world = doors(sha256=True)
    client = world.connect()
    url = urlOf(create(client))
    for at in (0, 1000):
        client.wait(OPEN_SECONDS + 1)  # what came before is read back
        patch(client, url, at, CONTENT[at : 1000 if not at else None])
    receipt = client.ask(b"GET", url).json["receipt"]
    assert receipt["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    url = urlOf(create(client, 3, name=b"y"))
    patch(client, url, 0, b"xyz", checksum(b"md5", b"abc"))
    patch(client, url, 0, b"abc")
    receipt = client.ask(b"GET", url).json["receipt"]
    assert receipt["sha256"] == hashlib.sha256(b"abc").hexdigest()


# -- secrets


def test_urlsOfOthers(doors):
    world = doors()
    client = world.connect()
    url = urlOf(create(client, body=CONTENT[:10]))
    token = url.rpartition(b"/")[2]
    (partial,) = world.store._partials.values()
    identity = partial.offer
    others = [
        *(
            token[:-1],
            token + b"A",
            token.swapcase(),
            token[:43],
            b"A" * 43,
            b"A",
            token[1:] + b"A",
        ),
        *(identity.transferId.encode(), identity.key.hex().encode(), b"_" * 51),
        base64.urlsafe_b64encode(identity.resumeKey).rstrip(b"="),
        # other bits of the last character, which carry nothing
        token[:42] + bytes([token[42] + 1]) + token[43:],
    ]
    for other in others:
        if other == token:
            continue
        for method in (b"HEAD", b"GET", b"DELETE"):
            target = b"/.connpool/u/" + other
            assert world.connect().ask(method, target, None, [TUS]).status == 404, other
    text = repr((world.reception.recent, identity, token))
    assert identity.resumeKey.hex() not in text
    assert head(client, url)[0] == 10


def test_anotherPrincipal(doors):
    world = doors(authenticator=Users())
    alice, bob = world.connect(), world.connect()
    asked = [TUS, b"Upload-Length: 10", b"Authorization: Basic " + coded(b"alice:x")]
    url = urlOf(alice.ask(b"POST", b"/", b"", asked))
    for paused in (False, True):
        for method in (b"HEAD", b"DELETE"):
            fields = [TUS, b"Authorization: Basic " + coded(b"bob:x")]
            assert bob.ask(method, url, None, fields).status == 404
        fields = [TUS, BYTES, b"Upload-Offset: %d" % paused, asked[-1]]
        assert alice.ask(b"PATCH", url, b"a", fields).status == 204
        alice.wait(OPEN_SECONDS + 1)
    # asked for each request
    assert alice.ask(b"HEAD", url, None, [TUS]).status == 401


# -- termination


def test_termination(door):
    client = door.connect()
    for came in (0, 10):
        url = urlOf(create(client, body=CONTENT[:came] or None))
        under = door.connect()
        fields = [TUS, BYTES, b"Upload-Offset: %d" % came]
        under.send(request(b"PATCH", url, CONTENT[came:], fields)[:-7])
        answer = client.ask(b"DELETE", url, None, [TUS])
        assert (answer.status, answer.fields["tus-resumable"]) == (204, "1.0.0")
        assert under.answer().json["code"] == "conflict-takeover"
        for method in (b"HEAD", b"DELETE"):
            assert client.ask(method, url, None, [TUS]).status == 404
        assert patch(client, url, 0, b"").status == 404
        assert not door.store._partials
    url = urlOf(create(client, body=CONTENT))
    assert client.ask(b"DELETE", url, None, [TUS]).status == 410
    assert door.files == {"x.bin": CONTENT}


def test_terminationOfAPausedUpload(door):
    client = door.connect()
    url = urlOf(create(client, body=CONTENT[:10]))
    client.wait(OPEN_SECONDS + 1)
    client = door.connect()
    assert client.ask(b"POST", url, b"", [TUS, b"X-HTTP-Method-Override: DELETE"]).status == 204
    assert not door.store._partials


def test_methodsInAField(door):
    client = door.connect()
    url = urlOf(create(client, 3))
    fields = [TUS, BYTES, b"Upload-Offset: 0"]
    for wrong in ([], [b"X-HTTP-Method-Override: PUT"], [b"X-HTTP-Method-Override: patch"]):
        assert door.connect().ask(b"POST", url, b"abc", [*fields, *wrong]).status == 405
    # it means nothing anywhere else
    override = b"X-HTTP-Method-Override: DELETE"
    assert urlOf(client.ask(b"POST", b"/", b"", [TUS, b"Upload-Length: 1", override]))
    fields.append(b"X-HTTP-Method-Override: PATCH")
    assert client.ask(b"POST", url, b"abc", fields).status == 204
    assert door.files == {"x.bin": b"abc"}


# -- pauses and limits


def test_aPauseIsNoFailure(doors):
    heard = []

    class Hears:
        def __getattr__(self, event):
            if event.startswith("__"):
                raise AttributeError(event)
            return lambda *details: heard.append(event)

    world = doors(listeners=[Hears()], policy=Policy(minimumRate=0, maxTransfers=1))
    client = world.connect()
    url = urlOf(create(client))
    assert heard == []
    for at in range(0, 100, 10):
        assert patch(client, url, at, CONTENT[at : at + 10]).status == 204
        assert world.reception.stats().active == 1
        client.wait(OPEN_SECONDS - 1)
        assert world.reception.stats().active == 1
        client.wait(2)
        assert world.reception.stats().active == 0
        client = world.connect()
    patch(client, url, 100, CONTENT[100:])
    assert [each for each in heard if each != "progressed"] == ["offered", "started", "published"]
    stats = world.reception.stats()
    assert (stats.started, stats.published, stats.failed, stats.refused) == (1, 1, 0, 0)


def test_asManyTransfersAsMayBe(doors):
    world = doors(policy=Policy(minimumRate=0, maxTransfers=1))
    client = world.connect()
    urls = [urlOf(create(client, name=b"%d" % number)) for number in range(2)]
    patch(client, urls[0], 0, CONTENT[:10])
    assert patch(world.connect(), urls[1], 0, CONTENT[:10]).status == 423
    client.wait(OPEN_SECONDS + 1)
    client = world.connect()
    assert patch(client, urls[1], 0, CONTENT[:10]).status == 204
    answer = client.ask(b"HEAD", urls[0], None, [TUS])
    # others begin anew after any other error
    assert answer.status == 423


def test_creationsAreForgotten(door):
    client = door.connect()
    url = urlOf(create(client))
    client.wait(3599)
    client = door.connect()
    assert head(client, url)[0] == 0
    client.wait(1)
    for _ in range(2):
        assert door.connect().ask(b"HEAD", url, None, [TUS]).status == 404


def test_creationsOfOneNetworkMakeWayForItsOwnOnly(door):
    mine = urlOf(create(door.connect("192.0.2.1")))
    flood = [urlOf(create(door.connect("192.0.2.2"))) for _ in range(MAX_OWN_CREATIONS + 1)]
    client = door.connect("192.0.2.1")
    assert head(client, mine)[0] == 0
    assert client.ask(b"HEAD", flood[0], None, [TUS]).status == 404
    assert head(client, flood[1])[0] == 0
    # a /64 is one sender
    for number in range(MAX_OWN_CREATIONS):
        create(door.connect(f"2001:db8::{number:x}"))
    first = urlOf(create(door.connect("2001:db8:0:1::1")))
    create(door.connect("2001:db8::ffff"))
    assert head(client, first)[0] == 0


def test_behindAProxyNobodyMakesWay(doors):
    world = doors(url="https://files.example/")
    through = [b"X-Forwarded-For: 192.0.2.1"]
    for _ in range(MAX_OWN_CREATIONS):
        assert create(world.connect(), 10, *through).status == 201
    answer = create(world.connect(), 10, *through)
    assert (answer.status, answer.json["code"]) == (423, "busy")
    assert create(world.connect("192.0.2.9"), 10).status == 201


def test_creationsInAll(door, monkeypatch):
    monkeypatch.setattr("connpool.transfer.web.creations.MAX_CREATIONS", 3)
    for number in range(3):
        create(door.connect(f"192.0.2.{number}"))
    answer = create(door.connect("192.0.2.9"))
    assert (answer.status, answer.json["code"]) == (423, "busy")
    assert door.reception.stats().refused == 1


def test_aCreationWhoseFirstBytesFail(door):
    client = door.connect()
    fields = [TUS, BYTES, b"Upload-Length: 5120", checksum(b"sha1", b"")]
    assert client.ask(b"POST", b"/", CONTENT, fields).status == 460
    client.send(request(b"POST", b"/", CONTENT, fields[:-1])[:-5])
    client.reset()
    # nobody knows the URL
    assert not door.store._partials
    assert door.reception.stats().active == 0


# -- curl -C


def put(client, url, first, data, size, *fields):
    span = b"Content-Range: bytes %d-%d/%d" % (first, first + len(data) - 1, size)
    return client.ask(b"PUT", url, data, [span, *fields])


def test_aRangeIsAppended(door):
    client = door.connect()
    url = urlOf(create(client, None, b"Upload-Defer-Length: 1"))
    answer = put(client, url, 0, CONTENT[:1000], len(CONTENT))
    assert (answer.status, answer.fields["upload-offset"]) == (204, "1000")
    answer = put(door.connect(), url, 0, CONTENT, len(CONTENT))
    assert (answer.status, answer.fields["upload-offset"]) == (409, "1000")
    sha256 = coded(hashlib.sha256(CONTENT).digest())
    answer = put(
        *(client, url, 1000, CONTENT[1000:], len(CONTENT)),
        b"Repr-Digest: sha-256=:%b:" % sha256,
    )
    assert (answer.status, answer.json["integrity"]) == (201, "verified")
    assert answer.fields["repr-digest"] == f"sha-256=:{sha256.decode()}:"
    assert answer.fields["location"] == "../../x.bin"
    assert door.files == {"x.bin": CONTENT}


def test_aWrongDigestOfAll(door):
    client = door.connect()
    url = urlOf(create(client))
    wrong = b"Repr-Digest: sha-256=:%b:" % coded(b"x" * 32)
    assert put(client, url, 0, CONTENT, len(CONTENT), wrong).status == 460
    assert door.files == {}
    assert client.ask(b"HEAD", url, None, [TUS]).status == 404


@pytest.mark.parametrize(
    "span",
    [
        *(None, b"bytes */10", b"bytes 0-9/*", b"bytes 9-0/10", b"lines 0-9/10", b"bytes 0-9/9"),
        *(b"bytes 0-8/10", b"bytes 1-10/10", b"bytes -9/10", b"bytes 0-9", b"bytes 0-9/10, 0-9/10"),
    ],
)
def test_rangesThatAreNone(door, span):
    url = urlOf(create(door.connect(), None, b"Upload-Defer-Length: 1"))
    fields = [] if span is None else [b"Content-Range: " + span]
    assert door.connect().ask(b"PUT", url, b"0123456789", fields).status == 400
    digest = b"Content-Digest: sha-256=:%b:" % coded(b"x" * 32)
    answer = put(door.connect(), url, 0, b"0123456789", 20, digest)
    assert answer.status == 460
    assert put(door.connect(), url, 0, b"0123", 20, b"Repr-Digest: sha-512=:eA==:").status == 400
    assert head(door.connect(), url)[0] == 0


# -- while the disk is slow, or wrong


class SlowEnd(MemoryStore):
    """
    One whose commits end when they are told to.
    """

    def __init__(self, **more):
        super().__init__(**more)
        self.waiting = []

    def open(self, offer, holder=None):
        def slow(partial):
            commit = partial.commit

            def later(root):
                d = Deferred()
                self.waiting.append(d)
                return d.addCallback(lambda _: commit(root))

            partial.commit = later
            return partial

        return super().open(offer, holder).addCallback(slow)


def test_publishingIsWaitedFor(doors):
    world = doors(store=SlowEnd())
    url = urlOf(create(world.connect()))
    under, leaves, asks, removes = (world.connect() for _ in range(4))
    wire = request(b"PATCH", url, CONTENT, [TUS, BYTES, b"Upload-Offset: 0"])
    under.send(wire)
    leaves.send(request(b"HEAD", url, None, [TUS]))
    leaves.reset()
    asks.bare.add(0)
    asks.send(request(b"HEAD", url, None, [TUS]))
    removes.send(request(b"DELETE", url, None, [TUS]))
    assert not [each.answers() for each in (under, asks, removes) if each.answers()]
    world.store.waiting.pop().callback(None)
    assert under.answer().fields["upload-offset"] == "5120"
    assert asks.answer().fields["upload-offset"] == "5120"
    assert removes.answer().status == 410
    assert world.files == {"x.bin": CONTENT}


def test_theTimeThatAnUploadMayTake(doors):
    world = doors(policy=Policy(minimumRate=0, maxTime=5))
    url = urlOf(create(world.connect()))
    client = world.connect()
    client.send(request(b"PATCH", url, CONTENT, [TUS, BYTES, b"Upload-Offset: 0"])[:-100])
    client.wait(5)
    assert (client.answer().status, client.ended) == (408, True)
    client = world.connect()
    assert head(client, url)[0] == 5020
    client.wait(5)
    assert world.reception.stats().active == 0
    assert patch(world.connect(), url, 5020, CONTENT[5020:]).status == 204
    assert world.files == {"x.bin": CONTENT}


class Local(World):
    """
    A receiver whose files are in a directory.
    """

    def __init__(self, root):
        self.reactor = InlineReactor()
        super().__init__(store=LocalStore(self.reactor, root, threads=self.reactor))

    def close(self):
        super().close()
        self.reactor.wait(self.store.close())


@pytest.mark.parametrize("place", [100, 1 << 20])
def test_bytesThatWereDamaged(root, place):
    content = bytes(1 << 20) + CONTENT
    world = Local(root)
    url = urlOf(create(world.connect(), len(content), body=content[:-10]))
    world.close()
    (path,) = parts(root)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\1")
    world = Local(root)
    # told or not, they are not the file; a client begins anew after 404
    world.connect().ask(b"HEAD", url, None, [TUS])
    assert world.connect().ask(b"HEAD", url, None, [TUS]).status == 404
    assert parts(root) == []
    assert visible(root) == {}
    assert world.reception.stats().failed == 1
    world.close()


def test_aHundredUploadsAgainstOneThatIsPaused(root):
    world = Local(root)
    paused = urlOf(create(world.connect("192.0.2.1"), body=CONTENT[:100]))
    world.clock.advance(OPEN_SECONDS)
    flood = []
    for number in range(MAX_PARTIALS + 20):
        client = world.connect("192.0.2.2")
        flood.append(urlOf(create(client, name=b"%d" % number, body=CONTENT[:100])))
        world.clock.advance(OPEN_SECONDS)
    assert len(parts(root)) == MAX_PARTIALS + 1
    client = world.connect("192.0.2.1")
    assert head(client, paused)[0] == 100
    # from another network, too: a telephone moves
    other = world.connect("198.51.100.7")
    assert patch(other, paused, 100, CONTENT[100:]).status == 204
    assert visible(root) == {"x.bin": CONTENT}
    assert client.ask(b"HEAD", flood[0], None, [TUS]).status == 404
    world.close()


def test_writesThatAreUnderWayAreWaitedFor(doors):
    store = Slow()
    world = doors(store=store)
    url = urlOf(create(world.connect()))
    under, asks = world.connect(), world.connect()
    wire = request(b"PATCH", url, CONTENT, [TUS, BYTES, b"Upload-Offset: 0"])
    under.send(wire[:-5000]).send(wire[-5000:-20])
    asks.bare.add(0)
    asks.send(request(b"HEAD", url, None, [TUS]))
    assert asks.answers() == under.answers() == []
    # the later write ends first
    first, second = store.waits
    second.callback(None)
    assert asks.answers() == []
    first.callback(None)
    store.waits = []
    assert asks.answer().fields["upload-offset"] == "5100"
    assert under.answer().json["code"] == "conflict-takeover"
    asks.send(request(b"PATCH", url, CONTENT[5100:], [TUS, BYTES, b"Upload-Offset: 5100"]))
    store.go()
    assert asks.answer().status == 204
    assert world.files == {"x.bin": CONTENT}


@pytest.mark.parametrize("failed", [0, 1])
def test_aWriteThatFails(doors, failed, monkeypatch):
    monkeypatch.setattr("connpool.transfer.web.uploads.chooseBlockSize", lambda size: 1000)
    store = Slow()
    world = doors(store=store)
    url = urlOf(create(world.connect()))
    client = world.connect()
    wire = request(b"PATCH", url, CONTENT, [TUS, BYTES, b"Upload-Offset: 0"])
    client.send(wire[:-2500]).send(wire[-2500:])
    for number, wait in enumerate(store.waits):
        wait.errback(NoSpace("full")) if number == failed else wait.callback(None)
    store.waits = []
    assert client.answer().status == 507
    # it goes on from what was recorded
    offset, _ = head(world.connect(), url)
    assert offset == (2000 if failed else 0)
    client = world.connect()
    client.send(
        request(b"PATCH", url, CONTENT[offset:], [TUS, BYTES, b"Upload-Offset: %d" % offset])
    )
    store.go()
    assert client.answer().status == 204
    assert world.files == {"x.bin": CONTENT}
    assert world.reception.stats().failed == 1


def test_aPauseThatFails(doors):
    world = doors()
    url = urlOf(create(world.connect(), body=CONTENT[:10]))
    (partial,) = world.store._partials.values()
    suspend, partial.suspend = partial.suspend, lambda: fail(NoSpace("full"))
    closing = world.door.close()
    # the receiver stops all the same
    assert closing.called
    suspend()
    assert head(world.connect(), url)[0] == 10
