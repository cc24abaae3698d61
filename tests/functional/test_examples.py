"""
The examples run as they stand, on ports of the system's choosing.
"""

import json
import re
import shutil
import signal
import socket
import sys
import urllib.request

from tests.helpers.ports import freePort
from tests.helpers.processes import CHECKOUT, connpool, running, twistd


def test_embed(tmp_path):
    source = (CHECKOUT / "examples/embed.py").read_text()
    port = freePort()
    for old, new in (("8640", port), ("tcp:8690", "tcp:0"), ("udp:8641", "udp:0")):
        assert old in source
        source = source.replace(old, str(new))
    (tmp_path / "embed.py").write_text(source)
    for name in ("inbox", "outbox"):
        (tmp_path / name).mkdir()
    (tmp_path / "outbox/file").write_text("hello")
    with twistd("-y", tmp_path / "embed.py", cwd=tmp_path) as program:
        program.waitFor(rf"filerecv listens on 127.0.0.1:{port},")
        echo = int(program.waitFor(r"udpecho.* answers on 127.0.0.1:(\d+)")[1])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"ping", ("127.0.0.1", echo))
            assert client.recv(100) == b"ping"
        page = program.waitFor(r"status page at (\S+)")[1]
        with urllib.request.urlopen(f"http://{page}/metrics", timeout=10) as answer:
            assert b"connpool_outbox_sent" in answer.read()
        program.waitFor("filesend sent file|stays where it is")
        program.stop()
        assert "Traceback" not in program.output
    assert (tmp_path / "inbox/file").read_text() == "hello"


def plugins(tmp_path, name):
    """
    Lay out an example of a plugin, and a file to send.

    @return: C{PYTHONPATH} with which it is found.
    """
    shutil.copytree(CHECKOUT / "examples" / name, tmp_path / "plugins")
    (tmp_path / "file").write_text("hello")
    return f"{CHECKOUT}:{tmp_path}/plugins"


def test_aListenerOfOnesOwn(tmp_path):
    path = plugins(tmp_path, "listener")
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


def test_aStoreOfOnesOwn(tmp_path):
    path = plugins(tmp_path, "store")
    (tmp_path / "files").mkdir()
    listen = "--listen=tcp:0:interface=127.0.0.1"
    with twistd(
        "filerecv", listen, "--store=dated:files", cwd=tmp_path, PYTHONPATH=path
    ) as program:
        place = program.waitFor(r"listens on (\S+), files go to the store dated;")[1]
        for protocol, code in (("classic", 9), ("native", 0)):
            sent = connpool(
                *("send", f"--protocol={protocol}", f"--to={place}", tmp_path / "file"),
                XDG_STATE_HOME=str(tmp_path),
            )
            assert sent.returncode == code, sent.stderr
        assert "1 was there already" in sent.stderr
        program.waitFor("HTTP takes whole files only, .*: the store dated cannot keep them")
        program.stop()
        assert "Traceback" not in program.output
    (stored,) = (tmp_path / "files").glob("20*/*")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/file", str(stored.relative_to(tmp_path / "files")))
    assert stored.read_text() == "hello"
    with twistd("filerecv", listen, "--store=dated:none", cwd=tmp_path, PYTHONPATH=path) as program:
        program.waitFor("filerecv: .*none")
        assert program.process.wait(20) == 1
        assert "Traceback" not in program.output


def test_aResponderOfOnesOwn(tmp_path):
    shutil.copytree(CHECKOUT / "examples/responder", tmp_path / "plugins")
    with twistd(
        *("udpecho", "--listen=udp:0:interface=127.0.0.1", "--protocol=reverse"),
        cwd=tmp_path,
        PYTHONPATH=f"{CHECKOUT}:{tmp_path}/plugins",
    ) as program:
        port = int(program.waitFor(r"answers on 127.0.0.1:(\d+)")[1])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"stressed", ("127.0.0.1", port))
            assert client.recv(100) == b"desserts"


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
