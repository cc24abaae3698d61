"""
C{twistd compose} as an operator runs it.
"""

import ftplib
import io
import re
import socket
import urllib.request

import pytest

from tests.helpers.ports import freePort
from tests.helpers.processes import CHECKOUT, TWIST, TWISTD, finished, goes, twistd


@pytest.fixture
def port():
    """
    A TCP port: C{ftp} cannot say what it got.
    """
    return freePort()


@pytest.fixture
def example(tmp_path, port):
    """
    examples/compose.toml, on ports of the system's choosing.
    """
    text = (CHECKOUT / "examples/compose.toml").read_text()
    for fixed, free in (
        ("tcp:8640", "tcp:0"),
        ("udp:8641", "udp:0"),
        ("tcp:8641", "tcp:0"),
        ("tcp:8080", "tcp:0"),
        ("tcp:8650", "tcp:0"),
        ("port = 2121", f"port = {port}"),
    ):
        assert text.count(fixed) == 1, fixed
        text = text.replace(fixed, free)
    (tmp_path / "services.toml").write_text(text)
    for directory in ("inbox", "public"):
        (tmp_path / directory).mkdir()
    (tmp_path / "public/hello.txt").write_text("hello")


def test_fiveInOneProcess(tmp_path, port, example):
    with twistd("compose", "services.toml", cwd=tmp_path) as program:
        inbox = int(program.waitFor(r"inbox listens on 127\.0\.0\.1:(\d+)")[1])
        echo = int(program.waitFor(r"echo: answers on 127\.0\.0\.1:(\d+)")[1])
        web = int(program.waitFor(r"Site starting on (\d+)")[1])
        program.waitFor("FTPFactory starting")
        front = int(program.waitFor(r"front starting on (\d+)")[1])

        for at in (web, front):
            with urllib.request.urlopen(f"http://127.0.0.1:{at}/hello.txt", timeout=20) as answer:
                assert answer.read() == b"hello"
        with ftplib.FTP(timeout=20) as ftp:
            ftp.connect("127.0.0.1", port)
            ftp.login()
            received = io.BytesIO()
            ftp.retrbinary("RETR hello.txt", received.write)
            assert received.getvalue() == b"hello"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(20)
            client.sendto(b"ping", ("127.0.0.1", echo))
            assert client.recv(100) == b"ping"

        # a stop lets the file under way end, and takes nothing new
        sender = socket.create_connection(("127.0.0.1", inbox), 20)
        sender.sendall(b"name")
        assert sender.recv(2) == b"ok"
        sender.sendall(b"half")
        program.process.terminate()
        program.waitFor(rf"\(TCP Port {web} Closed\)")
        for closed in (inbox, web, front, port):
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.1", closed), 20)
        assert program.process.poll() is None
        sender.sendall(b" and half")
        sender.close()
        assert program.process.wait(30) in {0, -15}
        assert (tmp_path / "inbox/name").read_text() == "half and half"
        assert program.output.count("Server Shut Down") == 1
        assert "Traceback" not in program.output
    assert not (tmp_path / "inbox.socket").exists()


def run(command, tmp_path, *words):
    return finished(*command, "compose", *words, cwd=tmp_path)


@pytest.mark.parametrize("command", [[*TWISTD, "-n", "--pidfile="], TWISTD, TWIST])
def test_aChildThatCannotStartIsOneLineAndExitCode1(tmp_path, command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (tmp_path / "f.toml").write_text(
            "[services.first]\nplugin = 'web'\nlisten = 'tcp:0:interface=127.0.0.1'\n"
            f"[services.second]\nplugin = 'ftp'\nport = {taken.getsockname()[1]}\n"
            "[services.third]\nplugin = 'web'\n"
            f"listen = 'tcp:{taken.getsockname()[1]}:interface=127.0.0.1'\n"
        )
        ended = run(command, tmp_path, "f.toml")
    assert ended.returncode == 1
    output = ended.stdout + ended.stderr
    assert len(re.findall(r"services\.(?:second|third): Address already in use", output)) == 1
    assert "Traceback" not in output
    assert goes(tmp_path / "twistd.pid")


def test_everyMistakeInTheFileIsOneLine(tmp_path):
    (tmp_path / "f.toml").write_text(
        "[services.a]\nplugin = 'wbe'\n[services.b]\nplugin = 'web'\nlist = 'tcp:0'\n"
    )
    expected = [
        "services.a: no plugin is called 'wbe'; did you mean web? (twistd --help lists them)",
        "services.b: web has no option 'list'; did you mean listen? (twistd web --help lists them)",
    ]
    for words in (["f.toml"], ["--check", "f.toml"]):
        ended = run([*TWISTD, "-n", "--pidfile="], tmp_path, *words)
        assert ended.returncode == 1
        assert ended.stderr.splitlines() == expected


def test_checkStartsNothing(tmp_path):
    (tmp_path / "f.toml").write_text("[services.a]\nplugin = 'web'\nlisten = 'unix:a'\n")
    ended = run(TWISTD, tmp_path, "--check", "f.toml")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "f.toml: 1 services, no mistake found\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.toml"]
