"""
Large files on the reactors that an operator may choose: sockets are borrowed on each.
"""

import random
import socket
import ssl
import time

import pytest
import trustme

from tests.helpers.processes import twistd
from tests.transfer import peer

MIB = 1 << 20


def sendNative(s, content):
    sender = peer.Sender(s).greet()
    stream, missing = sender.offer(b"native", content, MIB)
    sender.blocks(stream, content, MIB, missing)
    assert sender.commit(stream, content, MIB)[0] == peer.RECEIPT


REACTORS = pytest.mark.parametrize("reactor", ["epoll", "asyncio", "poll"])


@REACTORS
def test_largeFilesByBothProtocols(tmp_path, reactor):
    content = random.Random(1).randbytes(6 * MIB + 1234)
    root = tmp_path / "root"
    root.mkdir()
    where = ("--listen", "tcp:0:interface=127.0.0.1", "--directory", root)
    with twistd(f"--reactor={reactor}", "filerecv", *where, cwd=tmp_path) as program:
        port = int(program.waitFor(r"filerecv listens on \S*:(\d+)").group(1))

        def connect():
            s = socket.create_connection(("127.0.0.1", port), 20)
            s.settimeout(20)
            return s

        with connect() as s:
            sendNative(s, content)
        with connect() as s:
            s.sendall(b"classic")
            assert s.recv(100) == b"ok"
            s.sendall(content[:-1234])
            # much came at once, and then little by little
            for at in range(len(content) - 1234, len(content), 200):
                time.sleep(0.06)
                s.sendall(content[at : at + 200])
            s.shutdown(socket.SHUT_WR)
            assert s.recv(1) == b""
        with connect() as s:
            s.sendall(b"reset")
            assert s.recv(100) == b"ok"
            s.sendall(content)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        program.waitFor("the sender's connection was reset")
    assert (root / "native").read_bytes() == content
    assert (root / "classic").read_bytes() == content
    assert not (root / "reset").exists()
    assert "Traceback" not in program.output


@REACTORS
def test_largeFilesWithinTLS(tmp_path, reactor):
    """
    The other end is Python's own TLS.
    """
    content = random.Random(1).randbytes(6 * MIB + 1234)
    root, pem = tmp_path / "root", tmp_path / "own.pem"
    root.mkdir()
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(pem))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    listen = f"secured:tcp:0:interface=127.0.0.1:certificate={pem}:privateKey={pem}"
    where = ("--listen", listen, "--directory", root)
    with twistd(f"--reactor={reactor}", "filerecv", *where, cwd=tmp_path) as program:
        port = int(program.waitFor(r"filerecv listens on \S*:(\d+)").group(1))
        s = socket.create_connection(("127.0.0.1", port), 20)
        with context.wrap_socket(s, server_hostname="127.0.0.1") as secure:
            secure.settimeout(20)
            sendNative(secure, content)
    assert (root / "native").read_bytes() == content
    assert "Traceback" not in program.output
