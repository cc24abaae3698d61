"""
Requests that two readers may understand differently, or that are none.

Each ends with a complete second request, hidden where a lenient reader would see it: that
must never be carried out.
"""

HIDDEN = b"PUT /hidden HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 6\r\n\r\nhidden"
_HOST = b"Host: 127.0.0.1\r\n"


def _put(fields, body=b"", line=b"PUT /seen HTTP/1.1"):
    return line + b"\r\n" + _HOST + fields + b"\r\n" + body


def _chunked(body):
    return _put(b"Transfer-Encoding: chunked\r\n", body)


_CHUNKED = b"3\r\nabc\r\n0\r\n\r\n"

#: Name to request and to the status that it gets.
FRAMING = {
    "length and chunked": (
        _put(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", _CHUNKED),
        400,
    ),
    "chunked and length": (
        _put(b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", _CHUNKED),
        400,
    ),
    "two equal lengths": (_put(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"), 400),
    "two lengths": (_put(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abc"), 400),
    "two lengths apart": (_put(b"Content-Length: 3\r\nX: y\r\ncontent-length: 3\r\n", b"abc"), 400),
    "a list of lengths": (_put(b"Content-Length: 3, 3\r\n", b"abc"), 400),
    "+3": (_put(b"Content-Length: +3\r\n", b"abc"), 400),
    "-3": (_put(b"Content-Length: -3\r\n", b"abc"), 400),
    "0x3": (_put(b"Content-Length: 0x3\r\n", b"abc"), 400),
    "3_0": (_put(b"Content-Length: 3_0\r\n", b"abc"), 400),
    "no length": (_put(b"Content-Length:\r\n", b"abc"), 400),
    "20 digits": (_put(b"Content-Length: 99999999999999999999\r\n", b"abc"), 400),
    "2^63": (_put(b"Content-Length: 9223372036854775808\r\n", b"abc"), 400),
    "identity": (_put(b"Transfer-Encoding: identity\r\n", b"abc"), 400),
    "xchunked": (_put(b"Transfer-Encoding: xchunked\r\n", _CHUNKED), 501),
    "gzip, chunked": (_put(b"Transfer-Encoding: gzip, chunked\r\n", _CHUNKED), 501),
    "chunked, identity": (_put(b"Transfer-Encoding: chunked, identity\r\n", _CHUNKED), 501),
    "chunked twice": (
        _put(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", _CHUNKED),
        501,
    ),
    "chunked in 1.0": (
        _put(b"Transfer-Encoding: chunked\r\n", _CHUNKED, b"PUT /seen HTTP/1.0"),
        400,
    ),
    "LF": (_put(b"Content-Length: 3\r\n", b"abc").replace(b"\r\n", b"\n", 1), 400),
    "LF in the middle": (_put(b"X: y\nContent-Length: 3\r\n", b"abc"), 400),
    "CR": (_put(b"X: y\rContent-Length: 3\r\n", b"abc"), 400),
    "folded": (_put(b"X: y\r\n Content-Length: 3\r\n", b"abc"), 400),
    "folded first": (b"PUT /seen HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    "space before the colon": (_put(b"Content-Length : 3\r\n", b"abc"), 400),
    "VT before chunked": (_put(b"Transfer-Encoding: \x0bchunked\r\n", _CHUNKED), 400),
    "NUL in a value": (_put(b"X: a\0b\r\nContent-Length: 3\r\n", b"abc"), 400),
    "01 in a value": (_put(b"X: a\x01b\r\nContent-Length: 3\r\n", b"abc"), 400),
    "7f in a value": (_put(b"X: a\x7fb\r\nContent-Length: 3\r\n", b"abc"), 400),
    "no colon": (_put(b"X\r\nContent-Length: 3\r\n", b"abc"), 400),
    "no name": (_put(b": x\r\nContent-Length: 3\r\n", b"abc"), 400),
    "no host": (b"PUT /seen HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 400),
    "two hosts": (_put(_HOST + b"Content-Length: 3\r\n", b"abc"), 400),
    "no host in Host": (b"PUT /seen HTTP/1.1\r\nHost: a b/@c\r\nContent-Length: 3\r\n\r\nabc", 400),
    "HTTP/2.0": (_put(b"Content-Length: 3\r\n", b"abc", b"PUT /seen HTTP/2.0"), 505),
    "HTTP/9.9": (_put(b"Content-Length: 3\r\n", b"abc", b"PUT /seen HTTP/9.9"), 505),
    "HTTP/1.2": (_put(b"Content-Length: 3\r\n", b"abc", b"PUT /seen HTTP/1.2"), 505),
    "http": (_put(b"Content-Length: 3\r\n", b"abc", b"PUT /seen http/1.1"), 400),
    "no version": (_put(b"Content-Length: 3\r\n", b"abc", b"PUT /seen"), 400),
    "two spaces": (_put(b"Content-Length: 3\r\n", b"abc", b"PUT  /seen HTTP/1.1"), 400),
    "a tab": (_put(b"Content-Length: 3\r\n", b"abc", b"PUT\t/seen HTTP/1.1"), 400),
    "a space in the target": (_put(b"Content-Length: 3\r\n", b"abc", b"PUT /se en HTTP/1.1"), 400),
    "8 bits in the target": (_put(b"Content-Length: 3\r\n", b"abc", b"PUT /s\xe9 HTTP/1.1"), 400),
    "101 fields": (_put(b"X: y\r\n" * 99 + b"Content-Length: 3\r\n", b"abc"), 431),
    "3,000 fields": (_put(b"X:\r\n" * 3000 + b"Content-Length: 3\r\n", b"abc"), 431),
    "a field of 16 KiB": (_put(b"X: " + b"y" * 16384 + b"\r\n", b"abc"), 431),
    "a target of 8 KiB": (_put(b"", b"abc", b"PUT /%b HTTP/1.1" % (b"x" * 8192)), 414),
    "put": (_put(b"Content-Length: 3\r\n", b"abc", b"put /seen HTTP/1.1"), 501),
    "CONNECT": (_put(b"", b"", b"CONNECT 127.0.0.1:1 HTTP/1.1"), 501),
    "TRACE": (_put(b"", b"", b"TRACE / HTTP/1.1"), 501),
    "200-ok": (_put(b"Content-Length: 3\r\nExpect: 200-ok\r\n", b"abc"), 417),
    "two expectations": (
        _put(b"Content-Length: 3\r\nExpect: 100-continue\r\nExpect: x\r\n", b"abc"),
        417,
    ),
    "20 F": (_chunked(b"F" * 20 + b"\r\nabc"), 400),
    "16 F": (_chunked(b"F" * 16 + b"\r\nabc"), 400),
    "LF after a size": (_chunked(b"3\nabc\r\n0\r\n\r\n"), 400),
    "CR after a size": (_chunked(b"3\rabc\r\n0\r\n\r\n"), 400),
    "LF after a chunk": (_chunked(b"3\r\nabc\n0\r\n\r\n"), 400),
    "wrong after a chunk": (_chunked(b"3\r\nabcXX0\r\n\r\n"), 400),
    "CR LF in an extension": (_chunked(b'3;x="\r\n"\r\nabc\r\n0\r\n\r\n'), 400),
    "LF in an extension": (_chunked(b"3;x=\ny\r\nabc\r\n0\r\n\r\n"), 400),
    "half a quote": (_chunked(b'3;x="y\r\nabc\r\n0\r\n\r\n'), 400),
    "a long extension": (_chunked(b"3;" + b"x" * 300 + b"\r\nabc\r\n0\r\n\r\n"), 400),
    "no size": (_chunked(b"\r\nabc\r\n0\r\n\r\n"), 400),
    "0x3 chunk": (_chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), 400),
    "-3 chunk": (_chunked(b"-3\r\nabc\r\n0\r\n\r\n"), 400),
    "a space before a size": (_chunked(b" 3\r\nabc\r\n0\r\n\r\n"), 400),
    "LF in a trailer": (_chunked(b"3\r\nabc\r\n0\r\nX: y\nZ: z\r\n\r\n"), 400),
    "a length as trailer": (_chunked(b"3\r\nabc\r\n0\r\nContent-Length: 9\r\n\r\n"), 400),
    "trailers of 64 KiB": (_chunked(b"3\r\nabc\r\n0\r\nX: " + b"y" * 65536 + b"\r\n\r\n"), 400),
}
