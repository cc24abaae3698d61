"""
An operator's mistake is one line and exit code 1, however the service is run.
"""

import os
import re
import select
import shutil
import signal
import socket
import time

import pytest

from tests.helpers.processes import TWIST, TWISTD, finished, goes, within


@pytest.fixture
def takenPort():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


#: What is wrong, the options (with {port} and {tmp}), what the line says.
MISTAKES = [
    ("port in use", "--listen=tcp:{port}:interface=127.0.0.1", "Address already in use"),
    (
        "foreign address",
        "--listen=tcp:0:interface=192.0.2.1 --allow=192.0.2.0/24",
        "no such address",
    ),
    ("unknown endpoint", "--listen=tpc:8640", "Unknown endpoint type"),
    ("not an endpoint", "--listen=8640", "not an endpoint"),
    ("udp for a stream", "--listen=udp:8640", "does not speak UDP"),
    (
        "no such link",
        r"--listen=tcp:0:interface=fe80\:\:1%nolink --allow=fe80::/10",
        "no link 'nolink'; its links: ",
    ),
    ("no link", r"--listen=tcp:0:interface=fe80\:\:1 --allow=fe80::/10", "say on which link"),
    # Twisted's parsers speak of the arguments of their functions
    ("unescaped address", "--listen=tcp:0:interface=::1", r"a colon in an address is written \:"),
    ("unknown part", "--listen=tcp:0:interfce=127.0.0.1", "it takes no interfce="),
    ("no number", "--listen=tcp:0:interface=127.0.0.1:backlog=x", "a part is missing, wrong"),
    ("no domain", "--listen=systemd:name=inbox", "domain= is INET, INET6 or UNIX"),
    ("no such port", "--listen=tcp:99999:interface=127.0.0.1", "65535"),
    ("missing directory", "--directory={tmp}/none", "none"),
    ("directory is a file", "--directory={tmp}/file", "file"),
    ("unwritable directory", "--directory=/proc/self/task", "/proc/self/task"),
    ("open without allow", "--listen=tcp:0", "--allow"),
    ("bad network", "--allow=10.0.0.1/8", "host bits"),
    ("bad size", "--max-file-size=12X", "K, M, G or T"),
    ("everybody without quota", "--listen=tcp:0 --allow=any", "--quota"),
    ("bad mode", "--file-mode=0649", "octal"),
    # 0o640 of a TOML file
    ("decimal mode", "--file-mode=416", "leading zero"),
    ("setuid mode", "--dir-mode=04755", "0777"),
    ("bad policy", "--if-exists=ask", "rename, replace"),
    ("bad suffix", "--classic-suffix=/../x", "--classic-suffix"),
    ("zero connections", "--max-connections=0", "at least 1"),
    ("never idle", "--idle-timeout=0", "above 0"),
    ("unknown option", "--frobnicate", "frobnicate"),
    ("stray argument", "stray", "stray"),
]


def run(command, options, tmp_path, port):
    (tmp_path / "file").write_text("")
    (tmp_path / "root").mkdir()
    words = [word.format(port=port, tmp=tmp_path) for word in options.split()]
    if not any(word.startswith("--directory") for word in words):
        words.insert(0, f"--directory={tmp_path}/root")
    if not any(word.startswith("--listen") for word in words):
        words.insert(0, "--listen=tcp:0:interface=127.0.0.1")
    return finished(*command, "filerecv", *words, cwd=tmp_path)


@pytest.mark.parametrize(("_", "options", "says"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_twistd(tmp_path, takenPort, _, options, says):
    ended = run([*TWISTD, "-n", "--pidfile="], options, tmp_path, takenPort)
    assert ended.returncode == 1
    assert ended.stderr.startswith("filerecv: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert says in ended.stderr
    assert "Traceback" not in ended.stdout


@pytest.mark.parametrize("mistake", [0, 2, 12, 14, 15], ids=lambda n: MISTAKES[n][0])
def test_twist(tmp_path, takenPort, mistake):
    _, options, says = MISTAKES[mistake]
    ended = run(TWIST, options, tmp_path, takenPort)
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if line.startswith("filerecv: ")]
    assert len(said) == 1, ended.stderr
    assert says in said[0]
    assert "Traceback" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("mistake", [0, 2, 12, 14, 15], ids=lambda n: MISTAKES[n][0])
def test_daemonized(tmp_path, takenPort, mistake):
    _, options, says = MISTAKES[mistake]
    pidfile = tmp_path / "pid"
    ended = run(
        [*TWISTD, f"--pidfile={pidfile}", f"--logfile={tmp_path}/log"],
        options,
        tmp_path,
        takenPort,
    )
    assert ended.returncode == 1
    output = ended.stdout + ended.stderr
    assert sum("filerecv: " in line for line in output.splitlines()) == 1, output
    log = tmp_path / "log"
    assert within(lambda: says in output + (log.read_text() if log.exists() else ""))
    assert "Traceback" not in output
    end = time.monotonic() + 10
    while pidfile.exists():
        # the daemon's parent ends as soon as the reason is known
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("daemon", [False, True])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rundir", "gone"], "cannot enter gone; name a directory with twistd --rundir="),
        (["--rundir", "file"], "cannot enter file; name a directory with twistd --rundir="),
        (["--chroot", "gone"], "cannot enter gone; name a directory with twistd --chroot="),
        (["--logfile", "made"], "cannot write made; name another with twistd --logfile="),
        (["--logfile", "gone/l"], "cannot write gone/l; name another with twistd --logfile="),
        (["--pidfile", "made"], "cannot write made; name another with twistd --pidfile="),
    ],
)
def test_whatTwistdCannotDo(tmp_path, daemon, words, says):
    (tmp_path / "made").mkdir()
    (tmp_path / "file").touch()
    more = ["--pidfile=", "--logfile=log"] if daemon else ["-n", "--pidfile="]
    ended = run([*TWISTD, *more, *words], "", tmp_path, 0)
    assert ended.returncode == 1
    output = ended.stdout + ended.stderr
    assert re.fullmatch(r"filerecv: twistd cannot .*\n", output), output
    assert says in output


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can give its rights away",
)
def test_twistHasNoFilesOfItsOwn(tmp_path):
    """
    It starts in a directory that cannot be written to.
    """
    place = tmp_path / "place"
    place.mkdir(mode=0o555)
    ended = run(
        ["setpriv", "--bounding-set=-dac_override", *TWIST],
        f"--directory={tmp_path}/gone",
        place,
        0,
    )
    assert "cannot write" not in ended.stderr
    assert f"directory {tmp_path}/gone does not exist" in ended.stderr


def test_aDaemonStartsAndStops(tmp_path):
    pidfile, log = tmp_path / "pid", tmp_path / "log"
    started = run([*TWISTD, f"--pidfile={pidfile}", f"--logfile={log}"], "", tmp_path, 0)
    assert started.returncode == 0, started.stderr
    process = os.pidfd_open(int(pidfile.read_text()))
    try:
        port = int(re.search(r"listens on 127.0.0.1:(\d+)", log.read_text())[1])
        # an answer means that the reactor runs and its signal handlers are in place
        with socket.create_connection(("127.0.0.1", port), 30) as sender:
            sender.sendall(b"../x")
            assert sender.recv(100).startswith(b"name-refused: ")
        signal.pidfd_send_signal(process, signal.SIGTERM)
        assert select.select([process], [], [], 30)[0], "did not stop"
    finally:
        os.close(process)
    assert goes(pidfile)
