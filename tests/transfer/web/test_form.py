"""
Files that come by a form.
"""

import pytest

from connpool.transfer.receive.policy import Policy
from connpool.transfer.web.answers import Problem
from connpool.transfer.web.form import MAX_FIELD_BYTES, MAX_FIELDS, MAX_PARTS, parametersOf
from tests.transfer.hostile import CORPUS
from tests.transfer.web.kit import HOST, request

LARGE = bytes(range(256)) * 3000


def part(content, disposition=b'form-data; name="file"; filename="x"', fields=b""):
    return (
        b"--BOUNDARY\r\nContent-Disposition: " + disposition + b"\r\n" + fields + b"\r\n" + content
    ) + b"\r\n"


def named(filename, content=b"content"):
    return part(content, b'form-data; name="file"; filename="%b"' % filename)


def form(*parts, target=b"/", fields=(), end=b"--BOUNDARY--\r\n", boundary=b"BOUNDARY"):
    kind = b"Content-Type: multipart/form-data; boundary=" + boundary
    return request(b"POST", target, b"".join(parts) + end, [kind, *fields])


def test_files(door):
    client = door.connect()
    answer = client.send(form(named(b"a"), named(b"b", LARGE), named(b"c", b""))).answer()
    assert answer.status == 201
    assert [each["name"] for each in answer.json] == ["a", "b", "c"]
    assert {each["status"] for each in answer.json} == {"stored"}
    assert door.files == {"a": b"content", "b": LARGE, "c": b""}
    again = client.send(form(named(b"a"))).answer()
    assert (again.status, again.json[0]["status"]) == (200, "duplicate")
    assert not client.ended


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 70_000])
def test_inPieces(door, size):
    content = b"--BOUNDARY\r\n--BOUNDAR\r\n\r\n--\r--BOUNDARY--" * 3
    raw = form(named(b"a", content), part(b"field", b'form-data; name="y"'), named(b"b", b"\r\n"))
    client = door.connect()
    for at in range(0, len(raw), size):
        client.send(raw[at : at + size])
    assert client.answer().status == 201
    assert door.files == {"a": content, "b": b"\r\n"}


@pytest.mark.parametrize(
    ("target", "path"), [(b"/", "x"), (b"/a/b/", "a/b/x"), (b"/%c3%a9/", "é/x")]
)
def test_theDirectory(door, target, path):
    answer = door.connect().send(form(named(b"x"), target=target)).answer()
    assert answer.status == 201
    assert door.files == {path: b"content"}


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b'form-data; name="f"; filename="a b;c.txt"', "a b;c.txt"),
        (b"form-data; name=f; filename=x.txt", "x.txt"),
        (b'FORM-DATA; NAME="f"; FILENAME="x"', "x"),
        (b'form-data; name="f"; filename="a%22b"', 'a"b'),
        (b'form-data; name="f"; filename="a\\"b"', 'a"b'),
        (b'form-data; name="f"; filename="100%25 %41"', "100%25 %41"),
        (b'form-data; name="f"; filename="dir/sub/x"', "dir/sub/x"),
        (b'form-data; name="f"; filename="y"; filename*=UTF-8\'\'%e4%ba%8c', "二"),
        ('form-data; name="f"; filename="二"'.encode(), "二"),
        ('form-data; name="f"; filename="a\u0302"'.encode(), "a\u0302"),
        (
            b'form-data; name="%s"; filename="<img src=x onerror=y>"' % (b"n" * 4096),
            "<img src=x onerror=y>",
        ),
    ],
)
def test_names(door, disposition, name):
    assert door.connect().send(form(part(b"content", disposition))).answer().status == 201
    assert door.files == {name: b"content"}


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="f"; filename="../x"',
        b'form-data; name="f"; filename="C:\\fakepath\\x"',
        b'form-data; name="f"; filename="a%0D%0Ab"',
        b'form-data; name="f"; filename="/x"',
        b'form-data; name="f"; filename="a//b"',
        b'form-data; name="f"; filename="' + b"x" * 4096 + b'"',
        b"form-data; name=\"f\"; filename*=latin-1''%e9",
        b"form-data; name=\"f\"; filename*=UTF-8''..%2fx",
        b'form-data; name="f"; filename*=x',
        b'form-data; name="f"; filename="caf\xe9"',
        b'form-data; name="f"; filename=".connpool/x"',
    ],
)
def test_namesThatAreRefused(door, disposition):
    """
    It fails alone.
    """
    answer = (
        door.connect().send(form(named(b"a"), part(b"content", disposition), named(b"b"))).answer()
    )
    assert answer.status == 400
    assert [each["status"] for each in answer.json] == ["stored", 400, "stored"]
    assert answer.json[1]["code"] == "name-refused"
    assert sorted(door.files) == ["a", "b"]


@pytest.mark.parametrize("profile", ["portable", "posix"])
def test_hostileNames(doors, profile):
    for item in CORPUS:
        # as a browser writes them; what no part's field can have is refused by the parser
        raw = item.raw.replace(b"\r", b"%0D").replace(b"\n", b"%0A").replace(b'"', b"%22")
        world = doors(policy=Policy(names=profile, minimumRate=0))
        if item.raw.endswith(b"\\") or len(raw) > 8000:
            continue
        client = world.connect()
        answer = client.send(form(named(raw))).answer()
        assert all(byte < 127 for byte in answer.body)
        if item.taken(profile):
            assert world.files == {item.raw.decode(): b"content"}, item
        else:
            assert world.files == {}, item
            assert answer.status == 400


@pytest.mark.parametrize(
    "disposition",
    [
        b"",
        b"form-data; filename",
        b'attachment; filename="x"',
        b'form-data; filename="x"; filename="y"',
        b'form-data; filename="x',
        b'form-data; filename="x"y',
        b"form-data, filename=x",
    ],
)
def test_partsThatAreNone(door, disposition):
    client = door.connect().send(form(named(b"a"), part(b"content", disposition)))
    assert client.answer().status == 400
    assert "x" not in door.files


def test_theFolderThatSomeClientsTell(door):
    relative = b'form-data; name="relativePath"'
    answer = (
        door.connect()
        .send(
            form(
                part(b"dir/a", relative),
                named(b"a"),
                named(b"b"),
                part(b"null", relative),
                named(b"c"),
                part(b"dir/d", relative),
                part(b"y", b'form-data; name="other"'),
                named(b"d"),
                part(b"../e", relative),
                named(b"e"),
            )
        )
        .answer()
    )
    assert answer.status == 400
    assert sorted(door.files) == ["b", "c", "d", "dir/a"]


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([named(b"")], 400),
        ([], 400),
        ([part(b"x" * MAX_FIELD_BYTES, b'form-data; name="y"'), named(b"a")], 201),
        ([part(b"x" * (MAX_FIELD_BYTES + 1), b'form-data; name="y"'), named(b"a")], 413),
        ([part(b"", b'form-data; name="y"')] * MAX_FIELDS + [named(b"a")], 201),
        ([part(b"", b'form-data; name="y"')] * (MAX_FIELDS + 1) + [named(b"a")], 413),
        ([named(b"%d" % n) for n in range(MAX_PARTS)], 201),
        ([named(b"%d" % n) for n in range(MAX_PARTS + 1)], 413),
        ([named(b"")] * 10_000, 413),
        ([part(b"x", fields=b"Content-Transfer-Encoding: base64\r\n")], 415),
        ([part(b"x", fields=b"Content-Transfer-Encoding: binary\r\n")], 201),
        ([part(b"x", fields=b"X: y\r\n" * 17)], 400),
        ([part(b"x", fields=b"X: " + b"y" * 9000 + b"\r\n")], 400),
        ([part(b"x", fields=b"X" * 9000)], 400),
        ([part(b"x", fields=b"no colon\r\n")], 400),
        ([part(b"x", fields=b"Content-Disposition: form-data; filename=y\r\n")], 400),
    ],
)
def test_limits(door, parts, status):
    answer = door.connect().send(form(*parts)).answer()
    assert answer.status == status
    assert (len(door.files) > 0) >= (status == 201)


@pytest.mark.parametrize(
    "kind",
    [
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b"multipart/form-data; boundary=" + b"x" * 71,
        b"multipart/form-data; boundary=" + b"x" * 4096,
        b"multipart/form-data; boundary=a b",
        b"multipart/mixed; boundary=x",
        b"application/x-www-form-urlencoded",
        b"text/plain",
    ],
)
def test_otherKinds(door, kind):
    client = door.connect()
    answer = client.ask(b"POST", b"/", b"--x--\r\n", [b"Content-Type: " + kind])
    assert (answer.status, answer.json["code"]) == (415, "unsupported")


@pytest.mark.parametrize("boundary", [b'"BOUNDARY"', b"BOUNDARY; charset=utf-8"])
def test_boundaries(door, boundary):
    assert door.connect().send(form(named(b"a"), boundary=boundary)).answer().status == 201


@pytest.mark.parametrize("end", [b"", b"--BOUNDARY", b"--BOUNDARY-", b"--OTHER--\r\n"])
def test_noLastBoundary(door, end, caplog):
    answer = door.connect().send(form(named(b"a"), named(b"b"), end=end)).answer()
    assert answer.status == 400
    assert set(door.files) <= {"a", "b"}
    assert not door.reception.active
    # the parser's own words for it would fill the log
    assert not caplog.records


def test_aCutAtEveryByte(door):
    raw = form(named(b"a", b"first"), named(b"b", b"second"))
    whole = {"a": b"first", "b": b"second"}
    for at in range(len(raw)):
        client = door.connect().send(raw[:at])
        (client.fin if at % 2 else client.reset)()
        # one whose end has come is there, and wholly
        assert all(whole[name] == content for name, content in door.files.items())
        assert not door.reception.active
        door.store.files.clear()


def test_limitsOfTheReceiver(doors):
    world = doors(policy=Policy(maxFileSize=10, minimumRate=0))
    answer = world.connect().send(form(named(b"a"), named(b"b", LARGE), named(b"c"))).answer()
    assert answer.status == 413
    assert [each["status"] for each in answer.json] == ["stored", 413, "stored"]
    assert answer.json[1]["name"] == "b"
    world = doors(policy=Policy(maxTransfers=0))
    answer = world.connect().send(form(named(b"a", LARGE))).answer()
    assert answer.status == 503


def test_aRule(doors):
    world = doors(policy=Policy(ifExists="replace", minimumRate=0))
    client = world.connect().send(form(named(b"a")))
    client.answer()
    refused = client.send(form(named(b"a", b"x"), fields=[b"If-None-Match: *"])).answer()
    assert refused.status == 409
    skipped = client.send(form(named(b"a", b"x"), fields=[b"Prefer: if-exists=skip"])).answer()
    assert (skipped.status, skipped.json[0]["status"]) == (200, "skipped")
    assert world.files == {"a": b"content"}


@pytest.mark.parametrize(
    "fields",
    [
        [b"Origin: http://evil.example"],
        [b"Origin: null"],
        [b"Sec-Fetch-Site: cross-site"],
        [b"Referer: http://evil.example/"],
    ],
)
def test_aFormOfAnotherSite(door, fields):
    for kind in (b"multipart/form-data; boundary=BOUNDARY", b"text/plain"):
        raw = form(named(b"a"), fields=fields).replace(
            b"multipart/form-data; boundary=BOUNDARY", kind
        )
        assert door.connect().send(raw).answer().status == 403
    assert door.files == {}


def test_aMethodInAField(door):
    raw = form(named(b"a"), fields=[b"X-HTTP-Method-Override: DELETE"])
    assert door.connect().send(raw).answer().status == 201


SCRIPTS = [
    b"<img src=x onerror=alert(1)>",
    b"%22><script>alert(1)</script>",
    b"javascript:alert(1)",
    "a\u202egpj.exe".encode(),
    b"x" * 255,
    b"a%0Ab",
    b"</title><h1>x",
    b"{x}&amp;",
]


def test_thePageOfResults(door):
    origin = b"Origin: http://" + HOST
    raw = form(*map(named, SCRIPTS), fields=[b"Accept: text/html,*/*", origin])
    answer = door.connect().send(raw).answer()
    assert answer.status == 400
    text = answer.body.decode()
    assert answer.fields["content-type"] == "text/html; charset=utf-8"
    assert answer.fields["content-security-policy"].startswith("default-src 'none'")
    for tag in ("<img", "<script", "<h1>x", "\u202e"):
        assert tag not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert text.count("<li>") == len(SCRIPTS)


def test_wordsOfAPart():
    found = parametersOf(b'form-data ; name = "x"'.replace(b" = ", b"="))
    assert found == {b"name": b"x"}
    with pytest.raises(Problem):
        parametersOf(b"form-data; =x")
