"""
Whatever a client sends, it gets an answer that says what is wrong, or a closed connection.
"""

import re

import hypothesis
from hypothesis import strategies as st

from connpool.transfer.receive.policy import Policy
from tests.transfer.web.kit import World, request
from tests.transfer.web.test_download import Table

NAMES = [
    *(b"Authorization", b"Content-Digest", b"Content-Disposition", b"Content-Encoding"),
    *(b"Content-Range", b"Content-Type", b"Expect", b"Host", b"If-None-Match", b"Origin"),
    *(b"Prefer", b"Referer", b"Repr-Digest", b"Sec-Fetch-Site", b"Trailer", b"Tus-Resumable"),
    *(b"Upload-Checksum", b"Upload-Length", b"Upload-Metadata", b"Upload-Offset", b"Via"),
    *(b"Want-Repr-Digest", b"X-HTTP-Method-Override", b"X-OC-Mtime", b"Accept", b"Connection"),
    *(b"Upload-Defer-Length", b"Upload-Concat", b"Content-Location", b"Upgrade"),
]
#: Fields of requests for a file that may be read.
CONDITIONS = [
    *(b"If-Match", b"If-None-Match", b"If-Modified-Since", b"If-Unmodified-Since", b"If-Range"),
    *(b"Range", b"Accept", b"Accept-Encoding"),
]
DATES = [
    *(b"Sun, 06 Nov 1994 08:49:37 GMT", b"Mon, 01 Jan 0001 00:00:00 -2359", b"1 Jan 1 0:0:0 -0000"),
    *(b"Fri, 31 Dec 9999 23:59:59 -2359", b"Thu, 01 Jan 2020 00:00:00 +99999999999", b"(((", b","),
    *(b"Thu, 99 Foo 2020 aa:bb GMT", b"Thu, 01 Jan -5 00:00:00 GMT", b"Thu Jan  1 00:00:00 1970"),
]
WORDS = [
    *(b"sha-256", b"sha-512", b"=", b":", b"AAAA", b",", b";", b" ", b"(", b")", b'"', b"*"),
    *(b"?1", b"1", b"-1", b"1.5", b"@1", b"99999999999999999999", b"%", b"\\", b"\xff", b"\xc3"),
    *(b"bytes", b"/", b"-", b"0", b"multipart/form-data", b"boundary", b"Basic", b"x", b"\t"),
    *(
        b"http://",
        b"[",
        b"]",
        b"durability",
        b"none",
        b"1.0.0",
        b"'",
        b"\xe4\xba\x8c",
        b"100-continue",
    ),
]
VALUES = st.lists(st.sampled_from(WORDS), max_size=8).map(b"".join)
FIELDS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=5)
TARGETS = st.lists(
    st.sampled_from(
        [b"/", b"x", b"%2e", b"%", b"%ff", b"%00", b"..", b".connpool/u/x", b"?", b"#", b"*"]
    ),
    max_size=5,
).map(lambda words: b"/" + b"".join(words))
METHODS = [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"POST", b"PATCH", b"DELETE"]


def answered(world, raw):
    client = world.connect()
    if raw.startswith(b"HEAD"):
        client.bare.add(0)
    client.send(raw)
    client.wait(200.0)
    assert client.ended
    return [each.status for each in client.answers()]


@hypothesis.settings(max_examples=250)
@hypothesis.given(
    declared=st.booleans(),
    method=st.sampled_from(METHODS),
    target=TARGETS,
    fields=FIELDS,
    body=VALUES,
)
def test_fields(declared, method, target, fields, body):
    world = World(url="https://files.example/") if declared else World()
    lines = [name + b": " + value for name, value in fields]
    statuses = answered(world, request(method, target, body, lines))
    assert statuses
    # nothing was unforeseen: an internal error would be logged, which fails the test too
    assert all(status < 500 or status in {501, 503, 505, 507} for status in statuses)
    world.close()


RANGES = [b"bytes=", b"bytes=0-", b"-5", b"0", b"9" * 19, b"9" * 20, b"-", b",", b'W/"', b'"']


@hypothesis.settings(max_examples=150)
@hypothesis.given(
    method=st.sampled_from([b"GET", b"HEAD"]),
    target=st.sampled_from([b"/a", b"/empty", b"/", b"/d/", b"/.connpool/list/", b"/gone"]),
    fields=st.lists(
        st.tuples(
            st.sampled_from(CONDITIONS),
            st.sampled_from(DATES)
            | st.lists(st.sampled_from(RANGES + WORDS), max_size=6).map(b"".join),
        ),
        max_size=4,
    ),
)
def test_downloads(method, target, fields):
    policy = Policy(minimumRate=0, reading=True)
    world = World(policy, authenticator=Table(read="everything"), download=True)
    world.files.update({"a": b"content", "empty": b"", "d/b": b"b"})
    lines = [name + b": " + value for name, value in fields]
    (status,) = answered(world, request(method, target, None, lines))
    assert status in {200, 206, 304, 400, 404, 412, 416}
    world.close()


PIECES = st.lists(
    st.sampled_from(
        [
            *(b"--B", b"\r\n", b"--", b"\n", b"\r", b"Content-Disposition", b": ", b"form-data"),
            *(b'; name="f"', b'; filename="x"', b"; filename*=UTF-8''%e4", b"content", b"\0", b":"),
            *(
                b"--B\r\nContent-Disposition: form-data; name=f; filename=x\r\n\r\nabc\r\n",
                b"--B--",
            ),
        ]
    ),
    max_size=12,
).map(b"".join)


@hypothesis.settings(max_examples=250)
@hypothesis.given(body=PIECES)
def test_forms(body):
    world = World()
    kind = [b"Content-Type: multipart/form-data; boundary=B"]
    (status,) = answered(world, request(b"POST", b"/", body, kind))
    assert status in {200, 201, 400, 413, 415}
    # RFC 2046 5.1.1: what else follows makes it no delimiter
    assert not any(re.search(rb"\r\n--B(\r\n|--)", content) for content in world.files.values())
    world.close()
