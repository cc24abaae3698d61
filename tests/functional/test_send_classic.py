"""
C{connpool send --protocol classic} against receivers of every temper: one
line, and an honest exit code.
"""

import contextlib
import os
import re
import signal
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
import trustme

from tests.helpers.processes import CONNPOOL, connpool, running, twistd, within


class Receiver:
    """
    A receiver that follows a script, in a thread, for one connection.
    """

    def __init__(self, script, buffer=None):
        self.listener = socket.create_server(("127.0.0.1", 0))
        if buffer is not None:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
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


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)
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


@pytest.mark.parametrize(
    "place", ["localhost", "::1:80", "127.0.0.1:no-such-service", ":80", "a:99999"]
)
def test_badPlaces(file, place):
    sent = send(place, file)
    assert sent.returncode == 2
    assert sent.stderr.startswith("connpool send: --to: ")
    assert sent.stderr.count("\n") == 1


def test_unknownHost(file):
    sent = send("no-such-host.invalid:80", file)
    assert sent.returncode == 7
    assert sent.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "shown"),
    [(b"name-refused: because\n", "name-refused: because"), (b"no\x1b[2J", r"no\x1b[2J")],
    ids=["a line", "no line end"],
)
def test_aRefusal(file, answer, shown):
    def script(self, connection):
        connection.recv(100)
        connection.sendall(answer)

    with Receiver(script) as receiver:
        sent = send(receiver.place, file)
    assert sent.returncode == 4
    assert sent.stderr.endswith(f"the receiver answered: {shown}\n")


def test_closedWithoutAnAnswer(file):
    with Receiver(lambda self, connection: connection.recv(100)) as receiver:
        sent = send(receiver.place, file)
    assert sent.returncode == 7
    assert sent.stderr.endswith("without an answer\n")


def test_aReceiverThatNeverAnswers(file):
    def script(self, connection):
        self.readAll(connection)

    with Receiver(script) as receiver:
        sent = send(receiver.place, "--timeout", "0.5", file)
    assert sent.returncode == 7
    assert sent.stderr.endswith("no answer for 0.5 s\n")


def newlines(connection):
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b"\n")
            time.sleep(0.1)


def test_newlinesAreNoAnswer(file):
    with Receiver(lambda _, connection: newlines(connection)) as receiver:
        sent = send(receiver.place, "--timeout", "0.5", file)
    assert sent.returncode == 7
    assert sent.stderr.endswith("no answer for 0.5 s\n")


def test_newlinesAfterOkAreNoProgress(tmp_path):
    path = sparse(tmp_path / "large", 50_000_000)

    def script(self, connection):
        connection.recv(100)
        connection.sendall(b"ok")
        newlines(connection)

    with Receiver(script) as receiver:
        sent = send(receiver.place, "--timeout", "0.5", path)
    assert sent.returncode == 7
    assert sent.stderr.endswith("the receiver took nothing for 0.5 s\n")


def test_aSlowReaderThatNeverPauses(tmp_path):
    """
    All of it is in our kernel long before the receiver has it.
    """
    path = sparse(tmp_path / "file", 3_000_000)

    def script(self, connection):
        connection.recv(100)
        connection.sendall(b"ok")
        while data := connection.recv(65_000):
            self.received += data
            time.sleep(0.05)

    with Receiver(script, buffer=200_000) as receiver:
        sent = send(receiver.place, "--timeout", "1", path)
    assert sent.returncode == 9, sent.stderr
    assert len(receiver.received) == 3_000_000


def test_aReceiverThatDoesNotClose(file):
    ended = threading.Event()

    def script(self, connection):
        connection.recv(100)
        connection.sendall(b"ok")
        self.readAll(connection)
        assert ended.wait(30)

    with Receiver(script) as receiver:
        sent = send(receiver.place, "--timeout", "0.5", file)
        ended.set()
    assert sent.returncode == 7
    assert sent.stderr.endswith("the receiver did not close for 0.5 s\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("answer", [b"", b"ok"])
def test_interrupted(tmp_path, number, answer):
    path = sparse(tmp_path / "large", 50_000_000)
    begun = threading.Event()

    def script(self, connection):
        connection.recv(100)
        connection.sendall(answer)
        begun.set()
        if answer:
            connection.recv(1000)
        with pytest.raises(ConnectionResetError):
            while connection.recv(65536):
                time.sleep(0.01)

    command = [*CONNPOOL, "send", "--protocol", "classic", "--to"]
    with Receiver(script) as receiver, running(*command, receiver.place, path, path) as sender:
        assert begun.wait(30)
        time.sleep(0.2)
        sender.process.send_signal(number)
        assert sender.process.wait(10) == 130
    assert sender.output == (
        f"connpool send: {path}: interrupted; nothing can be resumed with the classic protocol; "
        "run it again\n"
    )


def test_interruptedWhileConnecting(file):
    # a full queue of connections: the next one is not answered
    with socket.socket() as listener, contextlib.ExitStack() as fill:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            each = fill.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))

        def connecting():
            states = Path("/proc/net/tcp").read_text()
            return len(re.findall(rf":{port:04X} 02 ", states))

        before = connecting()
        command = [*CONNPOOL, "send", "--protocol", "classic", "--to"]
        with running(*command, f"127.0.0.1:{port}", file) as sender:
            assert within(lambda: connecting() > before, 30)
            sender.process.send_signal(signal.SIGINT)
            assert sender.process.wait(10) == 130
    assert sender.output.count("\n") == 1


@pytest.mark.parametrize(
    "option",
    [
        ["--dry-run"],
        ["--json"],
        ["--receipt", "receipts"],
        ["--credentials", "secret"],
        ["--if-exists", "refuse"],
    ],
)
def test_whatClassicCannotDo(file, option):
    """
    A dry run that sends would be the worst of them.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sent = send(f"127.0.0.1:{listener.getsockname()[1]}", *option, file)
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert sent.returncode == 2
    assert sent.stderr == f"connpool send: {option[0]}: the classic protocol cannot do that\n"


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
        assert send(place, file, tmp_path / "bad\nname").returncode == 4
        receiver.waitFor("received file")
    assert (root / "file").read_bytes() == b"content"


def test_overTLS(tmp_path, root):
    """
    It ends with TLS's own goodbye; without, the receiver could not tell it from a cut.
    """
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    (tmp_path / "roots").mkdir()
    authority.cert_pem.write_to_path(tmp_path / "roots" / "ca.pem")
    pem = tmp_path / "both.pem"
    pem.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    path = tmp_path / "large"
    path.write_bytes(os.urandom(5_000_000))
    listen = f"--listen=ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}"
    with twistd("filerecv", listen, f"--directory={root}", cwd=tmp_path) as receiver:
        port = receiver.waitFor(r"listens on 127.0.0.1:(\d+)")[1]
        sent = send(f"tls:localhost:{port}:trustRoots={tmp_path / 'roots'}", path)
        assert sent.returncode == 9, sent.stderr
        assert sent.stderr.count("\n") == 1
        receiver.waitFor("received large")
    assert (root / "large").read_bytes() == path.read_bytes()
