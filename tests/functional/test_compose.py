"""
C{twistd compose} as an operator runs it.
"""

import ftplib
import io
import re
import socket
import subprocess
import urllib.request

import pytest

from tests.helpers.processes import TWIST, TWISTD, environment, goes, twistd


@pytest.fixture
def port():
    """
    A TCP port that was free a moment ago: C{ftp} cannot say what it got.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_othersPluginsInOneProcess(tmp_path, port):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "hello.txt").write_text("hello")
    (tmp_path / "services.toml").write_text(
        f"""
        [services.site]
        plugin = "web"
        path = "site"
        listen = ["unix:site.socket", "tcp:0:interface=127.0.0.1"]

        [services.files]
        plugin = "ftp"
        port = {port}
        root = "site"
        """
    )
    with twistd("compose", "services.toml", cwd=tmp_path) as program:
        web = program.waitFor(r"Site starting on (\d+)").group(1)
        program.waitFor("FTPFactory starting")
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/hello.txt", timeout=20) as answer:
            assert answer.read() == b"hello"
        with ftplib.FTP(timeout=20) as ftp:
            ftp.connect("127.0.0.1", port)
            ftp.login()
            received = io.BytesIO()
            ftp.retrbinary("RETR hello.txt", received.write)
            assert received.getvalue() == b"hello"
        assert program.stop() in {0, -15}
        assert f"(TCP Port {web} Closed)" in program.output
        assert f"(TCP Port {port} Closed)" in program.output
        assert "Server Shut Down" in program.output
        assert "Traceback" not in program.output
        assert not (tmp_path / "site.socket").exists()


def run(command, tmp_path, *words):
    return subprocess.run(
        [*command, "compose", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment(),
    )


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
