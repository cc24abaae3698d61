"""
Answers as they come, read as h11 alone reads them.
"""

import h11
import pytest

from connpool.transfer.stores.s3.replies import Broken, ReplyReader

MOST = 1000
HEAD = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: 5\r\n"
#: Answers in the plain form, and with what makes them another.
ANSWERS = [
    HEAD + LENGTH + b"\r\nhello",
    b"HTTP/1.1 404\r\nA: b\r\n" + LENGTH + b"\r\nhello",
    HEAD + b'ETag:\t "e e" \t\r\n' + LENGTH.lower() + b"\r\nhello",
    HEAD + b"X: caf\xc3\xa9\r\n" + LENGTH + b"\r\nhello",
    HEAD + b"Connection: keep-alive\r\n" + LENGTH + b"\r\nhello",
    HEAD + b"Connection: Close\r\n" + LENGTH + b"\r\nhello",
    HEAD + LENGTH + b"\r\nhello and more",
    HEAD + b"Content-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 204 None\r\n\r\n",
    b"HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + LENGTH + b"\r\nhello",
    b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n" + HEAD + LENGTH + b"\r\nhello",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x\r\nllo\r\n0\r\nT: 1\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n5\r\nhello\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: gzip\r\n" + LENGTH + b"\r\nhello",
    HEAD + LENGTH + LENGTH + b"\r\nhello",
    HEAD + LENGTH + b"content-length: 6\r\n\r\nhello!",
    HEAD + b"Content-Length: 5, 5\r\n\r\nhello",
    HEAD + b"Content-Length: +5\r\n\r\nhello",
    HEAD + b"Content-Length: -5\r\n\r\nhello",
    HEAD + b"Content-Length: 0x5\r\n\r\nhello",
    HEAD + "Content-Length: \u0665\r\n\r\nhello".encode(),
    HEAD + b"Content-Length : 5\r\n\r\nhello",
    HEAD + b"A: 1\r\n 2\r\n" + LENGTH + b"\r\nhello",
    HEAD + b"A: 1\r\nA: 2\r\n" + LENGTH + b"\r\nhello",
    HEAD + b"A: \0\r\n" + LENGTH + b"\r\nhello",
    HEAD + b": no name\r\n" + LENGTH + b"\r\nhello",
    HEAD + b"no colon\r\n" + LENGTH + b"\r\nhello",
    HEAD + LENGTH + b"\r\nhell",
    HEAD + b"\r\nuntil the end",
    (HEAD + LENGTH + b"\r\nhello").replace(b"\r", b""),
    b"HTTP/1.0 200 OK\r\n" + LENGTH + b"\r\nhello",
    b"HTTP/1.1 099 Odd\r\n" + LENGTH + b"\r\nhello",
    b"HTTP/2 200\r\n" + LENGTH + b"\r\nhello",
    b"ICY 200 OK\r\n\r\n",
    HEAD + b"Content-Length: 1001\r\n\r\n" + b"x" * 1001,
    HEAD + b"\r\n" + b"x" * 1001,
]


def readByItself(method, data):
    """
    The answer by h11 alone; the kind of an error.
    """
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
    http.send(h11.EndOfMessage())
    head, body = None, b""
    try:
        for each in (data, b""):
            http.receive_data(each)
            while isinstance(event := http.next_event(), h11.Event):
                if isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > MOST:
                        return Broken
                elif isinstance(event, h11.EndOfMessage):
                    headers = {n.decode("latin-1"): v.decode("latin-1") for n, v in head.headers}
                    last = http.their_state is not h11.DONE or http.trailing_data[0] != b""
                    return (head.status_code, headers, body, last)
                elif isinstance(event, h11.ConnectionClosed):
                    break
    except h11.RemoteProtocolError:
        return Broken
    return Broken


def readInPieces(method, data, size):
    reader = ReplyReader(method, MOST)
    try:
        for at in range(0, len(data), size):
            reply = reader.feed(data[at : at + size])
            if reply is not None:
                last = reader.last or at + size < len(data)
                return (reply.status, reply.headers, reply.body, last)
        reply = reader.end()
    except Broken:
        return Broken
    if reply is None:
        return Broken
    return (reply.status, reply.headers, reply.body, reader.last)


@pytest.mark.parametrize("number", range(len(ANSWERS)))
@pytest.mark.parametrize("method", ["PUT", "HEAD"])
def test_asH11Alone(number, method):
    data = ANSWERS[number]
    wanted = readByItself(method, data)
    for size in (len(data), 7, 1):
        assert readInPieces(method, data, size) == wanted


def test_mostArePlain(monkeypatch):
    """
    h11 is not asked for an answer of the plain form.
    """
    monkeypatch.setattr(h11, "Connection", None)
    for data in ANSWERS[:9]:
        assert readInPieces("PUT", data, len(data)) != Broken
