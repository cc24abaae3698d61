"""
Signatures beside those of botocore.
"""

import datetime as dt

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from connpool.transfer.stores.s3.signing import Keys, Signer, encodedPath, encodedQuery

NAMES = [
    "plain",
    "a/b/c.txt",
    "with space",
    "plus+and&amp=",
    "percent%41%",
    "umlaut-äöü",
    "combining-a\u0308",
    "emoji-\U0001f600",
    "~tilde_-.",
    "..dots..",
    "a//b",
    "star*quote'(brackets)",
    "ctrl\x01\x7f",
    "colon:semi;comma,",
    "#hash?question",
    '"<>[]{}|^`',
    "trailing ",
]
DATES = [0.0, 951782400.0, 1798761599.9, 4102444800.0]


def theirs(monkeypatch, keys, region, at, method, path, query, headers):
    when = dt.datetime.fromtimestamp(int(at), dt.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: when)
    url = f"http://engine.example{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method=method, url=url, headers=dict(headers))
    request.context["client_config"] = type(
        "Config", (), {"s3": {"payload_signing_enabled": False}}
    )
    credentials = Credentials(keys.access, keys.secret, keys.token or None)
    botocore.auth.S3SigV4Auth(credentials, "s3", region).add_auth(request)
    return request.headers["Authorization"]


def ours(keys, region, at, method, path, query, headers):
    return dict(Signer(region).sign(keys, at, method, path, query, headers))["authorization"]


def same(monkeypatch, keys, region, at, method, path, query, headers):
    given = (keys, region, at, method, path, query, headers)
    assert ours(*given) == theirs(monkeypatch, *given)


HOST = ("host", "engine.example")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("token", ["", "AQoDYXdz/session+token=="])
def test_oddNames(monkeypatch, name, token):
    keys = Keys("AKIDEXAMPLE", "secret/+=", token)
    path = encodedPath("bucket-1", name)
    query = encodedQuery([("uploadId", name), ("partNumber", "7")])
    same(monkeypatch, keys, "eu-central-1", DATES[2], "PUT", path, query, [HOST])


@pytest.mark.parametrize("at", DATES)
@pytest.mark.parametrize("region", ["us-east-1", "auto", "garage", "ap-southeast-99"])
def test_datesAndRegions(monkeypatch, at, region):
    query = encodedQuery([("list-type", "2"), ("prefix", "a b/ä"), ("delimiter", "/")])
    path = encodedPath("bucket", "")
    same(monkeypatch, Keys("AK", "SK"), region, at, "GET", path, query, [HOST])


def test_headersAndSubresources(monkeypatch):
    headers = [
        ("x-amz-meta-connpool", "  many   spaces\tinside "),
        ("host", "engine.example:8333"),
        ("if-none-match", "*"),
        ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg=="),
        ("x-amz-checksum-crc32", "AAAAAA=="),
    ]
    same(
        monkeypatch,
        Keys("AK", "SK"),
        "r",
        1e9,
        "POST",
        "/b/k",
        encodedQuery([("uploads", "")]),
        headers,
    )


def test_corpus(monkeypatch):
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)

    @given(text, st.lists(st.tuples(text, text), max_size=4, unique_by=lambda pair: pair[0]), text)
    def check(name, parameters, token):
        token = "".join(token.split()).encode("ascii", "ignore").decode()
        token = "".join(c for c in token if c.isprintable())
        keys = Keys("AK", "SK", token)
        path, query = encodedPath("b", name), encodedQuery(parameters)
        same(monkeypatch, keys, "r", 1.5e9, "GET", path, query, [HOST])

    check()


def test_onlyTheIdentifierIsShown():
    shown = repr(Keys("AKID", "the-secret", "the-token"))
    assert "AKID" in shown
    assert "the-secret" not in shown
    assert "the-token" not in shown
