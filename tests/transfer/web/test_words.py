"""
The pure parts: fields, targets, statuses and hosts.
"""

import json

import pytest

from connpool import errors
from connpool.errors import Exists, Skipped, TransferError
from connpool.transfer.web.answers import Answer, problem, statusOf
from connpool.transfer.web.head import Head
from connpool.transfer.web.origin import originOf
from connpool.transfer.web.put import modifiedOf
from connpool.transfer.web.request import preferencesOf
from connpool.transfer.web.target import Kind, locate, parseTarget


def head(*fields):
    found = {}
    for name, value in fields:
        found.setdefault(name, []).append(value)
    return Head("PUT", "/x", found)


@pytest.mark.parametrize(
    ("text", "modified"),
    [
        (b"0", 0),
        (b"1600000000", 1_600_000_000 * 10**9),
        (b"1600000000.25", 1_600_000_000_250_000_000),
        (b"1.000000001", 1_000_000_001),
        (b"-1.5", -1_500_000_000),
        (b"-0.5", -500_000_000),
    ],
)
def test_times(text, modified):
    assert modifiedOf(head((b"x-oc-mtime", text))) == modified


def test_preferences():
    found = preferencesOf(
        head((b"prefer", b'Durability=data; x=y, a="b", durability=none'), (b"prefer", b"wait"))
    )
    assert found == {"durability": "data", "a": "b", "wait": ""}


@pytest.mark.parametrize(
    ("text", "kind", "depth"),
    [
        ("/", Kind.ROOT, 0),
        ("http://x", Kind.ROOT, 0),
        ("/a", Kind.NAME, 0),
        ("/a/b%2fc", Kind.NAME, 1),
        ("/a/b/", Kind.DIRECTORY, 2),
        ("/.connpool/u/AbC-_09", Kind.UPLOAD, 2),
        ("/.connpool/u/", Kind.OURS, 2),
        ("/.connpool/u/a/b", Kind.OURS, 3),
        ("/.CONNPOOL", Kind.OURS, 0),
        ("/.connpoolx", Kind.NAME, 0),
    ],
)
def test_targets(text, kind, depth):
    target = parseTarget("PUT", text)
    assert (target.kind, target.depth) == (kind, depth)
    assert target.token == ("AbC-_09" if kind is Kind.UPLOAD else "")
    assert "AbC" not in repr(target).partition("path")[0]


def test_places():
    assert locate("a:b/c?", 0) == "./a%3Ab/c%3F"
    assert locate("二", 3) == "../../../%E4%BA%8C"
    assert locate("x", 3, "https://h/up/") == "https://h/up/x"


def test_everyErrorHasAStatus():
    known = {
        each.code: each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, TransferError) and each is not Skipped
    }
    for code, kind in known.items():
        answer = problem(kind(f"line\n{code}"))
        status, document = answer.status, json.loads(answer.body)
        assert 400 <= status <= 507
        assert document["detail"] == f"line {code}"
        assert document["code"] == code
        assert document["title"]
        # clients wait or give up as the error says
        assert dict(answer.fields).keys() - {"Content-Type"} == (
            {"Retry-After"}
            if status in {503, 507}
            else {"WWW-Authenticate"}
            if status == 401
            else set()
        )
    assert statusOf(Exists("x")) == 409
    assert statusOf(Skipped("x")) == 200
    assert statusOf(Exists("x"), conditional=True) == 412
    assert statusOf(Exists("x"), upload=True) == 422


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Files.Example/up/", "https://files.example"),
        ("https://x:443/", "https://x"),
        ("http://x:443/", "http://x:443"),
        ("http://[::1]:80", "http://[::1]"),
    ],
)
def test_theOriginOfAUrl(url, origin):
    assert originOf(url) == origin


def test_anAnswerIsOneAnswer():
    """
    Nothing in a value becomes a field, and the fields of an answer replace the usual ones.
    """
    answer = Answer(200, [("X", "a\r\nSet-Cookie: b\0é"), ("Cache-Control", "no-cache")])
    wire = answer.write(False)
    assert b"\r\nX: a??Set-Cookie: b??\r\n" in wire
    assert wire.count(b"Cache-Control") == 1


def test_documentsAreASCII():
    # a terminal acts on nothing in them
    for text in ("\u202egnp.exe", "caf\xe9", "\udc80"):
        answer = problem(TransferError(text))
        assert answer.body.isascii()
        told = json.loads(answer.body)["detail"]
        assert told == ("\\udc80" if text == "\udc80" else text)
