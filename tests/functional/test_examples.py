"""
The examples run as they stand, on ports of the system's choosing.
"""

import json
import shutil
import signal
import socket
import sys

from tests.helpers.processes import CHECKOUT, connpool, running, twistd


def test_embed(tmp_path):
    source = (CHECKOUT / "examples/embed.py").read_text()
    lines = [line for line in source.split('"""')[2].splitlines() if line.strip()]
    assert len(lines) < 20
    for port in ("tcp:8640", "udp:8641"):
        assert port in source
        source = source.replace(port, f"{port[:3]}:0")
    (tmp_path / "embed.py").write_text(source)
    (tmp_path / "inbox").mkdir()
    (tmp_path / "file").write_text("hello")
    with twistd("-y", tmp_path / "embed.py", cwd=tmp_path) as program:
        place = program.waitFor(r"filerecv listens on (\S+),")[1]
        port = int(program.waitFor(r"udpecho.* (?:on|answers on) \S*?127.0.0.1:(\d+)")[1])
        assert (
            connpool("send", "--protocol", "classic", "--to", place, tmp_path / "file").returncode
            == 9
        )
        program.waitFor("received file")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"ping", ("127.0.0.1", port))
            assert client.recv(100) == b"ping"
    assert (tmp_path / "inbox/file").read_text() == "hello"


def test_aListenerOfOnesOwn(tmp_path):
    shutil.copytree(CHECKOUT / "examples/listener", tmp_path / "plugins")
    (tmp_path / "file").write_text("hello")
    path = f"{CHECKOUT}:{tmp_path}/plugins"
    listen = "--listen=tcp:0:interface=127.0.0.1"
    with twistd(
        "filerecv", listen, "--listener=ledger:files.jsonl", cwd=tmp_path, PYTHONPATH=path
    ) as program:
        place = program.waitFor(r"filerecv listens on (\S+),")[1]
        connpool("send", "--protocol=classic", "--to", place, tmp_path / "file")
        transferId = program.waitFor(r"received file .*id (\w+)")[1]
        program.stop()
    (line,) = (tmp_path / "files.jsonl").read_text().splitlines()
    receipt = json.loads(line)
    assert (receipt["name"], receipt["transferId"]) == ("file", transferId)
    with twistd("filerecv", listen, "--listener=ledger", cwd=tmp_path, PYTHONPATH=path) as program:
        program.waitFor("filerecv: --listener: ledger: which file")
        assert program.process.wait(20) == 1


def test_aProgramOfOnesOwn(tmp_path):
    source = (CHECKOUT / "examples/inbox.py").read_text()
    assert "tcp:8640" in source
    (tmp_path / "inbox.py").write_text(source.replace("tcp:8640", "tcp:0"))
    (tmp_path / "file").write_text("hello")
    with running(sys.executable, tmp_path / "inbox.py", cwd=tmp_path) as program:
        place = program.waitFor(r"filerecv listens on (\S+),")[1]
        connpool("send", "--protocol=classic", "--to", place, tmp_path / "file")
        program.waitFor("got 5 bytes in received/file")
        assert program.stop() in {0, -signal.SIGTERM}
        assert "Traceback" not in program.output
    assert (tmp_path / "received/file").read_text() == "hello"
