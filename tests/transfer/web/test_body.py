"""
Bodies cut out of the stream.
"""

import h11
import hypothesis
import pytest
from hypothesis import strategies as st

from connpool.transfer.web.answers import Problem
from connpool.transfer.web.body import Chunked, Sized


def read(body, raw, size):
    content, rest = b"", b""
    for at in range(0, len(raw), size):
        piece = raw[at : at + size]
        if body.over:
            rest += piece
            continue
        run, after = body.feed(piece)
        content += bytes(run)
        rest += bytes(after)
    return content, rest


CHUNKED = b'5\r\nhello\r\n00a ; a=b;c="x y" ; d\r\n0123456789\r\n0\r\nX: y\r\nZ:\t z \r\n\r\n'


def test_inPieces():
    for size in range(1, len(CHUNKED) + 8):
        body = Chunked()
        assert read(body, CHUNKED + b"GET /", size) == (b"hello0123456789", b"GET /")
        assert body.over
        assert body.trailers == {b"x": [b"y"], b"z": [b"z"]}
        body = Sized(15)
        assert read(body, b"hello0123456789GET /", size) == (b"hello0123456789", b"GET /")
        assert body.over


def test_spacesInATrailerAreReadOnce():
    """
    They are no riddle whose solution takes minutes.
    """
    for value in (b"a" + b" " * 15_000 + b"b", b" " * 15_000):
        body = Chunked()
        body.feed(b"0\r\nX:" + value + b"\r\n\r\n")
        assert body.trailers == {b"x": [value.strip()]}
        with pytest.raises(Problem):
            Chunked().feed(b"0\r\nX:" + value + b"\0\r\n\r\n")


def byH11(raw):
    """
    The content of a chunked body as h11 reads it; L{None} if it does not.
    """
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.next_event()
    connection.receive_data(raw)
    content = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                content += event.data
            elif isinstance(event, h11.EndOfMessage):
                return content
            else:
                return None
    except h11.RemoteProtocolError:
        return None


@hypothesis.settings(max_examples=300)
@hypothesis.given(
    st.lists(
        st.sampled_from(
            [b"3", b"0", b"\r\n", b"\n", b"\r", b"abc", b";", b"x", b'"', b" ", b"X: y", b"=", b"A"]
        ),
        max_size=16,
    ).map(b"".join)
)
def test_nothingIsTakenThatAnotherReadsDifferently(raw):
    body = Chunked()
    try:
        content, rest = read(body, raw, 1)
    except Problem:
        return
    if body.over:
        assert byH11(raw[: len(raw) - len(rest)]) == content
    whole = Chunked()
    run, after = whole.feed(raw)
    assert (bytes(run), bytes(after), whole.over) == (content, rest, body.over)
