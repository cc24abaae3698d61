"""
Requests that are refused: alone, after a good one, and in pieces.
"""

import h11
import hypothesis
import pytest
from hypothesis import strategies as st

from connpool.transfer.web.answers import Problem
from connpool.transfer.web.head import parseHead
from tests.transfer.web.corpus import FRAMING, HIDDEN
from tests.transfer.web.kit import request

GOOD = request(b"PUT", b"/good", b"good")


# one test for all of them: each test costs a collection of all garbage


def test_refused(door):
    for name, (raw, status) in FRAMING.items():
        client = door.connect().send(raw + HIDDEN)
        answer = client.answer()
        assert answer.status == status, name
        assert answer.fields["connection"] == "close", name
        assert answer.fields["content-type"] == "application/problem+json", name
        assert answer.json["status"] == status, name
        assert answer.json["detail"].isprintable(), name
        assert client.ended, name
        assert door.files == {}, name


def test_refusedBehindAGoodOne(door):
    for name, (raw, status) in FRAMING.items():
        client = door.connect().send(GOOD + raw + HIDDEN + GOOD)
        first, second = client.answers()
        assert (first.status in {200, 201}, second.status) == (True, status), name
        assert client.ended, name
        assert door.files == {"good": b"good"}, name


def test_refusedInPieces(door):
    for name, (raw, status) in FRAMING.items():
        client = door.connect()
        step = max(1, len(raw) // 97)
        for at in range(0, len(raw), step):
            client.send(raw[at : at + step])
        client.send(HIDDEN)
        assert [answer.status for answer in client.answers()] == [status], name
        assert client.ended, name
        assert door.files == {}, name


def test_oneEmptyLineFirstIsSkipped(door):
    assert door.connect().send(b"\r\n" + GOOD).answer().status == 201


def test_theFirstFrameOfHTTP2IsAnswered(door):
    client = door.connect().send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
    settings, goaway = client.transport.written[:9], client.transport.written[9:]
    assert settings == bytes.fromhex("000000 04 00 00000000")
    assert goaway == bytes.fromhex("000008 07 00 00000000 00000000 0000000d")
    assert client.ended


@pytest.mark.parametrize("method", [b"PUT", b"GET", b"POST"])
def test_theOldVersionNeedsNoHost(door, method):
    client = door.connect().send(method + b" /x HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc" + HIDDEN)
    assert len(client.answers()) == 1
    assert client.ended
    assert door.files == ({"x": b"abc"} if method == b"PUT" else {})


def test_aBodyBehindARequestWithout(door):
    """
    Bytes behind a body of length 0 are the next request, and that is none.
    """
    client = door.connect().send(request(b"PUT", b"/a", b"") + b"abc\r\n\r\n")
    assert [answer.status for answer in client.answers()] == [201, 400]
    assert client.ended


@pytest.mark.parametrize("target", [b"http://evil.example/x", b"http://127.0.0.1:1/x"])
def test_anotherHostInTheTarget(door, target):
    client = door.connect().send(request(b"PUT", target, b"abc") + HIDDEN)
    assert client.answer().status == 400
    assert client.ended
    assert door.files == {}


def test_theHostInTheTarget(door):
    assert door.connect().ask(b"PUT", b"http://127.0.0.1:8640/x", b"abc").status == 201
    assert door.files == {"x": b"abc"}


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        (b"PUT", b"*", 400),
        (b"PUT", b"x", 400),
        (b"PUT", b"ftp://127.0.0.1/x", 400),
        (b"GET", b"/x", 405),
        (b"DELETE", b"/x", 405),
        (b"PATCH", b"/x", 405),
        (b"PUT", b"/", 400),
        (b"PUT", b"/x/", 400),
        (b"GET", b"/x/", 405),
        (b"POST", b"/x", 405),
        (b"POST", b"/x/", 415),
        (b"GET", b"/.connpool/x", 404),
        (b"GET", b"/%2econnpool/x", 404),
        (b"PUT", b"/.connpool/x", 404),
        (b"GET", b"/.connpool/u/AAAA", 404),
    ],
)
def test_targetsWithoutAFile(door, method, target, status):
    client = door.connect()
    answer = client.ask(method, target, b"")
    assert answer.status == status
    # the next request is not harmed
    assert client.put(b"/x", b"abc").status == 201


@pytest.mark.parametrize(("method", "remedy"), [(b"GET", "--web-download"), (b"POST", "with /")])
def test_aMethodThatMeansSomethingElsewhere(door, method, remedy):
    answer = door.connect().ask(method, b"/x", b"")
    assert (answer.status, answer.fields["allow"]) == (405, "PUT, OPTIONS")
    assert remedy in answer.json["detail"]


def byH11(raw):
    """
    The head as h11 reads it; L{None} if it does not.
    """
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    try:
        return connection.next_event()
    except h11.RemoteProtocolError:
        return None


PIECES = [b"Host: x", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"\r\n", b"\n", b"\r"]
PIECES += [b" ", b"\t", b":", b"X", b"\xe9", b"\0", b"\x7f", b"3", b",", b"Expect: 100-continue"]
PIECES += [b"\x0b", b'"', b"@", b"X: y"]


@hypothesis.settings(max_examples=500)
@hypothesis.given(
    st.sampled_from(
        [b"PUT /x HTTP/1.1", b"GET / HTTP/1.0", b"PUT /x\xe9 HTTP/1.1", b"PUT  HTTP/1.1"]
    ),
    st.lists(st.lists(st.sampled_from(PIECES), max_size=4).map(b"".join), max_size=4),
    st.booleans(),
)
def test_nothingIsTakenThatAnotherReadsDifferently(line, lines, host):
    raw = b"\r\n".join([line, *([b"Host: y"] if host else []), *filter(None, lines), b"", b""])
    try:
        head = parseHead(raw)
    except Problem:
        return
    other = byH11(raw)
    assert isinstance(other, h11.Request)
    assert (other.method, other.target) == (head.method.encode(), head.target.encode())
    fields = sorted((name, value) for name, values in head.fields.items() for value in values)
    assert sorted(other.headers) == fields
