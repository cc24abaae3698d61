"""
Long bodies by HTTP, which are read past the transport: in clear and within TLS.
"""

import os
import random
import socket
import ssl
import struct
from contextlib import contextmanager

import pytest
import trustme

from tests.helpers.processes import twistd

MIB = 1 << 20
SIZE = 3 * MIB + 1234


@pytest.fixture(params=["plain", "TLS"])
def place(request, tmp_path):
    """
    A receiver: connects to it, and its program and directory.
    """
    root, pem = tmp_path / "root", tmp_path / "own.pem"
    root.mkdir()
    authority, listen = trustme.CA(), "tcp:0:interface=127.0.0.1"
    secure = request.param == "TLS"
    if secure:
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
        listen = f"secured:{listen}:certificate={pem}:privateKey={pem}"
    context = ssl.create_default_context()
    authority.configure_trust(context)

    @contextmanager
    def connect():
        with socket.create_connection(("127.0.0.1", port), 20) as plain:
            if not secure:
                yield plain
                return
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
                yield secured

    where = ("--listen", listen, "--directory", root)
    with twistd("filerecv", *where, cwd=tmp_path) as program:
        port = int(program.waitFor(r"filerecv listens on \S*:(\d+)").group(1))
        yield connect, program, root
        assert "Traceback" not in program.output


def put(name, size, more=""):
    return (
        f"PUT /{name} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n{more}\r\n".encode()
    )


def answers(stream, count):
    """
    The status lines of so many answers.
    """
    found = []
    with stream.makefile("rb") as reader:
        while len(found) < count:
            found.append(reader.readline().split()[1])
            length = 0
            while line := reader.readline().strip():
                field, _, value = line.partition(b":")
                length = int(value) if field.lower() == b"content-length" else length
            reader.read(length)
    return found


def test_requestsBehindALongBodyAreAnswered(place):
    """
    They come in one piece with its end, and it comes in pieces of any size.
    """
    connect, _, root = place
    data, chance = random.Random(1).randbytes(SIZE), random.Random(2)
    wire = put("long", SIZE) + data + put("short", 5) + b"short" + put("other", SIZE) + data
    with connect() as stream:
        at = 0
        while at < len(wire):
            size = chance.choice((100, 70_000, MIB))
            stream.sendall(wire[at : at + size])
            at += size
        assert answers(stream, 3) == [b"201"] * 3
    assert (root / "long").read_bytes() == data
    assert (root / "short").read_bytes() == b"short"
    assert (root / "other").read_bytes() == data


@pytest.mark.parametrize("how", ["end", "reset"])
def test_whatIsCutWithinALongBodyIsNotPublished(place, how):
    connect, program, root = place
    with connect() as stream:
        stream.sendall(put("cut", SIZE) + os.urandom(2 * MIB))
        if how == "reset":
            option = struct.pack("ii", 1, 0)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
    program.waitFor("did not receive cut")
    with connect() as stream:
        stream.sendall(put("cut", 4) + b"here")
        assert answers(stream, 1) == [b"201"]
    assert (root / "cut").read_bytes() == b"here"


def test_aLongBodyThatIsRefused(place):
    """
    Its digest is wrong: the client hears of it, and the next request is served.
    """
    connect, _, root = place
    wrong = "Repr-Digest: sha-256=:" + "A" * 43 + "=:\r\n"
    with connect() as stream:
        stream.sendall(put("refused", SIZE, wrong) + os.urandom(SIZE))
        [status] = answers(stream, 1)
        assert status[:1] == b"4"
    assert not (root / "refused").exists()
