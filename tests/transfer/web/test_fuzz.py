"""
Whatever a client sends, it gets an answer that says what is wrong, or a closed connection.
"""

import re

import hypothesis
from hypothesis import strategies as st

from tests.transfer.web.kit import World, request

NAMES = [
    *(b"Authorization", b"Content-Digest", b"Content-Disposition", b"Content-Encoding"),
    *(b"Content-Range", b"Content-Type", b"Expect", b"Host", b"If-None-Match", b"Origin"),
    *(b"Prefer", b"Referer", b"Repr-Digest", b"Sec-Fetch-Site", b"Trailer", b"Tus-Resumable"),
    *(b"Upload-Checksum", b"Upload-Length", b"Upload-Metadata", b"Upload-Offset", b"Via"),
    *(b"Want-Repr-Digest", b"X-HTTP-Method-Override", b"X-OC-Mtime", b"Accept", b"Connection"),
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
