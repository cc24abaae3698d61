"""
C{connpool send --protocol classic} against receivers of every temper: one
line, and an honest exit code.
"""

import os
import socket
import struct
import threading

import pytest

from tests.helpers.processes import connpool, twistd


class Receiver:
    """
    A receiver that follows a script, in a thread, for one connection.
    """

    def __init__(self, script):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(30)
        self.place = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.script = script
        self.received = b""
        self.failure = None
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            connection, _ = self.listener.accept()
            with connection:
                connection.settimeout(30)
                self.script(self, connection)
        except BaseException as e:
            self.failure = e

    def readAll(self, connection):
        while data := connection.recv(65536):
            self.received += data

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.listener.close()
        self.thread.join(30)
        assert not self.thread.is_alive()
        assert self.failure is None, self.failure


def send(place, *paths):
    return connpool("send", "--protocol", "classic", "--to", place, *paths)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize("answer", [b"ok", b"OK", b"ok\n", b"OK\r\n"])
def test_everyWayToSayOk(file, answer):
    def script(self, connection):
        assert connection.recv(100) == b"file"
        for n in range(len(answer)):
            connection.sendall(answer[n : n + 1])
        self.readAll(connection)

    with Receiver(script) as receiver:
        sent = send(receiver.place, file)
    assert receiver.received == b"content"
    assert sent.returncode == 9
    assert sent.stderr == f"{file}: sent 7 bytes, unconfirmed (classic has no confirmation)\n"


def test_nobodyListens(file):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        place = f"127.0.0.1:{gone.getsockname()[1]}"
    sent = send(place, file)
    assert sent.returncode == 7
    assert sent.stderr.startswith(f"connpool send: {file}: cannot connect")
    assert "refused" in sent.stderr
    assert sent.stderr.count("\n") == 1


@pytest.mark.parametrize("place", ["localhost", "::1:80", "127.0.0.1:http", ":80", "a:99999"])
def test_badPlaces(file, place):
    sent = send(place, file)
    assert sent.returncode == 2
    assert sent.stderr.startswith("connpool send: --to: ")
    assert sent.stderr.count("\n") == 1


def test_unknownHost(file):
    sent = send("no-such-host.invalid:80", file)
    assert sent.returncode == 7
    assert sent.stderr.count("\n") == 1


def test_refusedName(file):
    def script(self, connection):
        connection.recv(100)
        connection.sendall(b"name-refused: because\n")

    with Receiver(script) as receiver:
        sent = send(receiver.place, file)
    assert sent.returncode == 4
    assert sent.stderr.endswith("the receiver answered: name-refused: because\n")


def test_aRefusalWithoutALineEnd(file):
    def script(self, connection):
        connection.recv(100)
        connection.sendall(b"no\x1b[2J")

    with Receiver(script) as receiver:
        sent = send(receiver.place, file)
    assert sent.returncode == 4
    assert sent.stderr.endswith("the receiver answered: no\\x1b[2J\n")


def test_closedWithoutAnAnswer(file):
    with Receiver(lambda self, connection: connection.recv(100)) as receiver:
        sent = send(receiver.place, file)
    assert sent.returncode == 7
    assert sent.stderr.endswith("without an answer\n")


def test_aReceiverThatNeverAnswers(file):
    def script(self, connection):
        self.readAll(connection)

    with Receiver(script) as receiver:
        sent = connpool(
            "send", "--protocol", "classic", "--timeout", "0.5", "--to", receiver.place, file
        )
    assert sent.returncode == 7
    assert "nothing came for 0.5 s" in sent.stderr


@pytest.mark.parametrize("reset", [True, False])
def test_aReceiverThatLeavesInTheMiddle(tmp_path, reset):
    path = tmp_path / "large"
    path.write_bytes(bytes(50_000_000))

    def script(self, connection):
        connection.recv(100)
        connection.sendall(b"ok")
        connection.recv(1000)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with Receiver(script) as receiver:
        sent = send(receiver.place, path)
    assert sent.returncode == 7
    assert "the receiver" in sent.stderr
    assert sent.stderr.count("\n") == 1


def test_aSourceThatChanges(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(20_000_000))

    def script(self, connection):
        connection.recv(100)
        with path.open("ab") as writer:
            writer.write(b"more")
        connection.sendall(b"ok")
        self.readAll(connection)

    with Receiver(script) as receiver:
        sent = send(receiver.place, path)
    assert sent.returncode == 8
    assert "changed while it was sent" in sent.stderr


def test_whatCannotBeSent(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    strange = os.path.join(os.fsencode(tmp_path), b"\xff")
    with open(strange, "w"):
        pass
    for path, why in [
        (tmp_path / "gone", "No such file"),
        (tmp_path, "it is a directory"),
        (tmp_path / "fifo", "not a regular file"),
        (os.fsdecode(strange), "not UTF-8"),
    ]:
        sent = send("127.0.0.1:9", path)
        assert sent.returncode == 3, path
        assert why in sent.stderr
        assert sent.stderr.count("\n") == 1


def test_someOfMany(tmp_path, root, file):
    (tmp_path / "bad\nname").write_text("x")
    with twistd(
        "filerecv", "--listen=tcp:0:interface=127.0.0.1", f"--directory={root}", cwd=tmp_path
    ) as receiver:
        place = receiver.waitFor(r"listens on (127.0.0.1:\d+)")[1]
        assert send(place, file, tmp_path / "gone", tmp_path / "bad\nname").returncode == 3
        assert send(place, tmp_path / "bad\nname").returncode == 4
        receiver.waitFor("received file")
    assert (root / "file").read_bytes() == b"content"
