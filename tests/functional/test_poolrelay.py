"""
C{twistd connpool} as an operator runs it.
"""

import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from tests.helpers.processes import TWISTD, running, twistd, within

LISTENS = r"listens on 127.0.0.1:(\d+)"


@contextmanager
def upstream():
    """
    An echo server in a thread.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    connections = []

    def echo(connection):
        # a dial that a stop cancels is reset
        with connection, suppress(ConnectionResetError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], connections
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def ask(port, data):
    """
    @return: what came back until the end.
    """
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while more := client.recv(65536):
            received += more
        return received


def test_itRelaysReportsAndStops(tmp_path):
    with upstream() as (port, connections):
        arguments = ["--listen", "tcp:0:interface=127.0.0.1", "--upstream", f"tcp:127.0.0.1:{port}"]
        status = ["--status", "tcp:0:interface=127.0.0.1"]
        with twistd("connpool", *arguments, *status, "--max-size", "3", cwd=tmp_path) as program:
            relay = int(program.waitFor(LISTENS)[1])
            for size in (1, 100_000):
                assert ask(relay, b"x" * size) == b"x" * size
            # the two that were used, and those made ahead, a moment later
            ahead = within(lambda: len(connections) >= 3)
            page = int(program.waitFor(r"status page at 127.0.0.1:(\d+)")[1])
            with socket.create_connection(("127.0.0.1", page), 10) as client:
                client.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
                metrics = client.makefile("rb").read().decode()
            assert ahead, (len(connections), metrics)
            assert "connpool_pool_maxSize" in metrics or "connpool_pool_max_size" in metrics
            program.stop()
            assert "Traceback" not in program.output


def test_aPortInUseIsOneLine(tmp_path):
    with upstream() as (port, _), running(
        *TWISTD, "-n", "--pidfile=", "connpool", "--listen", f"tcp:{port}:interface=127.0.0.1",
        "--upstream", "tcp:127.0.0.1:1", cwd=tmp_path,
    ) as program:  # fmt: skip
        assert program.process.wait(30) == 1
        assert "another program has this port" in program.output
        assert "Traceback" not in program.output


@pytest.mark.parametrize("arguments", [[], ["--upstream", "tcp:h:1", "--listen", "tcp:0:x=y"]])
def test_aMistakeIsOneLine(arguments, tmp_path):
    with running(*TWISTD, "-n", "--pidfile=", "connpool", *arguments, cwd=tmp_path) as program:
        assert program.process.wait(30) == 1
        assert "connpool: --listen" in program.output
        assert "Traceback" not in program.output
