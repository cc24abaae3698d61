"""
Commands and services in the odd surroundings that operators really have: each works
or ends with one line.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from connpool.commands import COMMANDS
from tests.helpers import processes as programs
from tests.helpers.processes import (
    CHECKOUT,
    TWIST,
    TWISTD,
    environment,
    running,
    within,
)
from tests.helpers.processes import (
    CONNPOOL as COMMAND,
)

PLUGINS = ("compose", "connpool", "filerecv", "filesend", "udpecho", "udpprobe")

#: Words of a command, and its exit code where nothing is odd.
WORDS = {
    "states": (["states"], 0),
    "states json": (["states", "--json"], 0),
    "states sockets": (["states", "--all", "--sockets"], 0),
    "resolve": (["resolve", "tcp", "127.0.0.1:80"], 0),
    "resolve json": (["resolve", "tcp", "127.0.0.1:80", "--json"], 0),
    "resolve nothing": (["resolve", "tcp", "127.0.0.1:no-such-service"], 2),
    "help": (["--help"], 0),
    "version": (["--version"], 0),
    "states help": (["states", "--help"], 0),
    "send help": (["send", "--help"], 0),
    "ping help": (["ping", "--help"], 0),
    "no such command": (["nonsense"], 2),
    "send to nobody": (["send", "--to", "127.0.0.1:1", sys.executable], 7),
}


def canUnshare(*flags):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    done = subprocess.run(["unshare", *flags, "true"], check=False, capture_output=True)
    return done.returncode == 0


def needs(*flags):
    return pytest.mark.skipif(
        not (os.environ.get("CI") or canUnshare(*flags)),
        reason=f"unshare {' '.join(flags)} is not permitted here",
    )


def run(words, *, closed=(), before=(), **more):
    """
    Run a command to its end.

    @param closed: descriptors that it does not have.
    """

    def close():
        for fd in closed:
            os.close(fd)

    more["preexec_fn"] = close if closed else None
    return programs.run([*before, *words], text=True, errors="replace", **more)


def oneLine(text):
    assert "Traceback" not in text
    assert "Exception ignored" not in text
    assert text.count("\n") == 1, text
    return text


# -- commands


QUICK = {"states", "resolve json", "resolve nothing", "states help"}


@pytest.mark.parametrize(
    "what", [pytest.param(name, marks=[pytest.mark.slow][name in QUICK :]) for name in WORDS]
)
def test_aFullStandardOutput(what):
    words, code = WORDS[what]
    buffered = environment()
    del buffered["PYTHONUNBUFFERED"]  # argparse itself hides it then
    with open("/dev/full", "w") as full:
        done = run([*COMMAND, *words], stdout=full, env=buffered)
    if code:
        assert (done.returncode, "standard output" in done.stderr) == (code, False)
    else:
        assert done.returncode == 1
        assert "cannot write to standard output: No space left" in oneLine(done.stderr)


@pytest.mark.parametrize("what", ["states", "resolve nothing", "no such command"])
def test_aFullStandardError(what):
    words, code = WORDS[what]
    with open("/dev/full", "w") as full:
        done = run([*COMMAND, *words], stderr=full)
    assert done.returncode == code
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("what", ["states", "no such command"])
def test_closedStreams(what, closed):
    words, code = WORDS[what]
    done = run([*COMMAND, *words], closed=closed)
    if 1 in closed and not code:
        code = 1
        if 2 not in closed:
            assert "cannot write to standard output: Bad file descriptor" in oneLine(done.stderr)
    assert done.returncode == code
    assert "Traceback" not in done.stdout + done.stderr


def test_aClosedStreamIsNobodyElsesSocket():
    """
    Without care, the first socket that is opened gets the number 2, and a message
    goes to the peer.
    """
    code = (
        "from connpool.standardstreams import prepareStreams; prepareStreams(discard=False);"
        "import socket, sys; s = socket.socket(); assert s.fileno() > 2; sys.stderr.write('x')"
    )
    assert run([sys.executable, "-c", code], closed=(0, 1, 2)).returncode == 0


def test_noInputIsNotAnEmptyOne(tmp_path):
    with running(*PLAIN, "filerecv", "--listen=tcp:0:interface=127.0.0.1", cwd=tmp_path) as program:
        to = program.waitFor(r"listens on (127\.0\.0\.1:\d+)")[1]
        done = run([*COMMAND, "send", "--to", to, "--name=x", "-"], closed=(0,))
    assert done.returncode == 3
    assert "there is no standard input" in oneLine(done.stderr)
    assert not (tmp_path / "received/x").exists()


def test_theReaderHasHadEnough():
    done = run(["sh", "-c", '"$@" | true; exit 0', "sh", *COMMAND, "states", "--all", "--sockets"])
    assert done.stderr == ""


LOCALES = [
    {"PYTHONIOENCODING": "latin-1"},
    pytest.param(
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, marks=pytest.mark.slow
    ),
    pytest.param({"LC_ALL": "POSIX"}, marks=pytest.mark.slow),
    pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
    pytest.param({"LC_ALL": "C.UTF-8"}, marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("locale", LOCALES, ids=str)
@pytest.mark.parametrize("command", COMMANDS)
def test_commandsInAnyLocale(command, locale):
    done = run([*COMMAND, command, "--help"], env=environment(**locale))
    assert (done.returncode, done.stderr) == (0, "")
    done = run([*COMMAND, "resolve", "tcp", "größe.invalid:80"], env=environment(**locale))
    assert done.returncode in {2, 7}
    oneLine(done.stderr)


@pytest.mark.parametrize("locale", LOCALES, ids=str)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_helpOfServicesInAnyLocale(plugin, locale):
    done = run([*TWISTD, plugin, "--help"], env=environment(**locale))
    assert (done.returncode, done.stderr) == (0, "")
    assert "--status" in done.stdout


def test_aPathThatTheTerminalCannotShow(tmp_path):
    (tmp_path / "größe.toml").write_text(
        '[services.echo]\nplugin = "udpecho"\nlisten = "udp:0:interface=127.0.0.1"\n'
    )
    words = [*TWISTD, "-n", "--pidfile=", "compose", "--check", "größe.toml"]
    done = run(words, cwd=tmp_path, env=environment(PYTHONIOENCODING="ascii"))
    assert (done.returncode, done.stderr) == (0, "")
    assert r"gr\xf6\xdfe.toml: 1 services, no mistake found" in done.stdout


@pytest.mark.parametrize("logger", ["text", "JSON"])
def test_namesInTheLogOfAnyLocale(logger, tmp_path):
    """
    Escaped where the stream cannot take them; JSON is UTF-8 everywhere.
    """
    name = "größe-数据库-\U0001f600.txt"
    (tmp_path / name).write_text("x")
    words = ["--logger=connpool.services.logs.jsonLines"] if logger == "JSON" else []
    listen = "--listen=tcp:0:interface=127.0.0.1"
    said = tmp_path / "said"
    with open(said, "wb") as out:
        process = subprocess.Popen(
            [*TWISTD, "-n", "--pidfile=", *words, "filerecv", listen],
            stdout=out,
            stderr=out,
            cwd=tmp_path,
            env=environment(PYTHONIOENCODING="latin-1"),
        )
    try:
        listens = re.compile(rb"listens on (127.0.0.1:\d+)")
        assert within(lambda: listens.search(said.read_bytes()), 30)
        to = listens.search(said.read_bytes())[1].decode()
        sent = run([*COMMAND, "send", "--to", to, "--protocol=classic", str(tmp_path / name)])
        assert sent.returncode == 9
        assert within(lambda: b"received" in said.read_bytes())
    finally:
        process.terminate()
        process.wait(30)
    if logger == "JSON":
        lines = map(json.loads, said.read_bytes().decode().splitlines())
        assert name in [line["receipt"]["name"] for line in lines if "receipt" in line]
    else:
        escaped = "größe-".encode("latin-1") + rb"\u6570\u636e\u5e93-\U0001f600.txt"
        assert escaped in said.read_bytes()


WITHOUT_PROC = (
    *("unshare", "-m", "sh", "-c"),
    'mount --make-rprivate / && mount -t tmpfs none /proc && exec "$@"',
    "sh",
)


@needs("-m")
def test_statesWithoutProc():
    done = run([*COMMAND, "states"], before=WITHOUT_PROC)
    assert done.returncode == 1
    assert "mount /proc" in oneLine(done.stderr)


# -- services


@pytest.fixture
def service(tmp_path, request):
    """
    The words that start each service, and the directory it runs in.
    """
    (tmp_path / "out").mkdir()
    (tmp_path / "services.toml").write_text(
        '[services.echo]\nplugin = "udpecho"\nlisten = "udp:0:interface=127.0.0.1"\n'
    )
    return {
        "filerecv": ["filerecv", "--listen=tcp:0:interface=127.0.0.1"],
        "udpecho": ["udpecho", "--listen=udp:0:interface=127.0.0.1"],
        "udpprobe": ["udpprobe", "--to=127.0.0.1:9"],
        "filesend": ["filesend", "--directory=out", "--to=127.0.0.1:9"],
        "connpool": [
            *("connpool", "--listen=tcp:0:interface=127.0.0.1", "--upstream=tcp:127.0.0.1:9"),
        ],
        "compose": ["compose", "services.toml"],
    }[request.param]


everyService = pytest.mark.parametrize(
    "service",
    [pytest.param(name, marks=[] if name == "filerecv" else pytest.mark.slow) for name in PLUGINS],
    indirect=True,
)


def serves(path):
    def answers():
        try:
            # 503 where there is no upstream
            return programs.fetch(path, "/readyz").startswith("HTTP/1.")
        except OSError:
            return False

    return within(answers, 30)


@contextmanager
def started(words, path, *, closed=(), before=(), stdout=None, stderr=None, **more):
    """
    A service that answers on its status socket; it ends by SIGTERM and without a
    traceback.
    """

    def close():
        for fd in closed:
            os.close(fd)

    with open(path / "said", "wb") as said:
        process = programs.Popen(
            [*before, *words[:-1], f"--status=unix:{path}/s", words[-1]],
            stdout=stdout or said,
            stderr=stderr or said,
            cwd=path,
            env=more.pop("env", None) or environment(),
            preexec_fn=close if closed else None,
        )
    try:
        assert serves(path / "s"), (path / "said").read_text()
        yield process
        process.terminate()
        assert process.wait(30) in {0, -signal.SIGTERM}
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
    assert "Traceback" not in (path / "said").read_text()


PLAIN = [*TWISTD, "-n", "--pidfile="]
ECHO = ["udpecho", "--listen=udp:0:interface=127.0.0.1"]


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)], ids=str)
@everyService
def test_servicesWithClosedStreams(service, closed, tmp_path):
    with started([*PLAIN, *service], tmp_path, closed=closed):
        pass


@pytest.mark.parametrize("logger", [(), ("--logger=connpool.services.logs.jsonLines",)], ids=str)
@everyService
def test_servicesWhoseLogIsFull(service, logger, tmp_path):
    with (
        open("/dev/full", "w") as full,
        started([*PLAIN, *logger, *service], tmp_path, stdout=full, stderr=full),
    ):
        pass


@everyService
def test_servicesOfAnUnknownUserWithoutHome(service, tmp_path):
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become a user that does not exist")
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT)}
    before = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    # pytest's own directories are closed to other users
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        shutil.copytree(tmp_path, home, dirs_exist_ok=True)
        for path in (home, *home.rglob("*")):
            os.chown(path, 54321, 54321)
        if run(["test", "-r", str(CHECKOUT / "setup.cfg")], before=before).returncode:
            pytest.skip("the checkout is closed to other users")
        with started([*PLAIN, *service], home, before=before, env=bare):
            pass


@needs("-p", "--fork", "--mount-proc")
@everyService
def test_servicesAsTheFirstProcess(service, tmp_path):
    """
    A container's: nobody ends it by accident, and SIGTERM does.
    """
    before = ["unshare", "-p", "--fork", "--mount-proc", "--kill-child"]
    with started([*PLAIN, *service], tmp_path, before=before) as outer:
        children = f"/proc/{outer.pid}/task/{outer.pid}/children"
        with open(children) as file:
            first = int(file.read())
        os.kill(first, signal.SIGHUP)
        os.kill(first, signal.SIGUSR1)
        time.sleep(0.1)
        assert serves(tmp_path / "s")
        os.kill(first, signal.SIGTERM)
        assert outer.wait(30) == 0


@needs("-m")
@everyService
def test_servicesWithoutProc(service, tmp_path):
    with started([*PLAIN, *service], tmp_path, before=WITHOUT_PROC):
        assert serves(tmp_path / "s")


REMOUNT = "mount --make-rprivate / && mount --bind . . && mount -o remount,ro,bind ."
READ_ONLY = ("unshare", "-m", "sh", "-c", f'{REMOUNT} && cd "$PWD" && exec "$@"', "sh")


@needs("-m")
@pytest.mark.parametrize("daemon", [(), ("-n",)], ids=str)
def test_twistdsOwnFilesOnAReadOnlyRoot(daemon, tmp_path):
    words = [*TWISTD, *daemon, *ECHO]
    done = run(words, before=READ_ONLY, cwd=tmp_path)
    assert done.returncode == 1
    assert "--pidfile" in oneLine(done.stderr)
    if not daemon:
        done = run([*TWISTD, "--pidfile=", *words[-2:]], before=READ_ONLY, cwd=tmp_path)
        assert done.returncode == 1
        assert "--logfile" in oneLine(done.stderr)


@needs("-m")
@everyService
def test_servicesOnAReadOnlyRoot(service, tmp_path):
    inside = tmp_path / "root"
    inside.mkdir()
    shutil.copytree(tmp_path / "out", inside / "out")
    shutil.copy(tmp_path / "services.toml", inside)
    status = f"--status=unix:{tmp_path}/s"
    writes = service[0] in {"filerecv", "filesend"}
    with running(
        *(*READ_ONLY, *PLAIN, *service[:-1], *(() if writes else (status,)), service[-1]),
        cwd=inside,
    ) as program:
        if writes:
            assert program.process.wait(30) == 1
            last = program.output.strip().splitlines()[-1]
            assert "Read-only file system" in last
        else:
            assert serves(tmp_path / "s"), program.output
        assert "Traceback" not in program.output


@everyService
def test_aStatusPortThatIsTaken(service, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status = f"--status=tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        done = run([*PLAIN, *service[:-1], status, service[-1]], cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.strip().startswith("--status: Address already in use")


# -- what a stranger can make us write


def test_tenThousandBadRequestsAreTenLines(tmp_path):
    """
    A few hundred of each kind stand for them: their lines are counted by the minute.
    """
    words = [
        *("filerecv", "--listen=tcp:0:interface=127.0.0.1", "--status=tcp:0:interface=127.0.0.1"),
        "--listen=proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1",
        "--allow=127.0.0.1",
    ]
    with running(*PLAIN, *words, cwd=tmp_path) as program:
        listens = program.waitFor(r"listens on \S+:(\d+), \S+:(\d+),")
        plain, proxied = map(int, listens.groups())
        page = int(program.waitFor(r"status page at \S+:(\d+)").group(1))
        before = program.output.count("\n")
        for port, data in (
            (plain, b"../../etc/passwd"),
            (plain, b"\0\xff\n"),
            (proxied, b"GET / HTTP/1.0\r\n\r\n"),
            (proxied, b"PROXY TCP4 x y z\r\n"),
            (page, b"\x16\x03\x01\0\0 not TLS here\r\n\r\n"),
            (page, b"GET / HTTP/1.1\r\nHost: attacker.example\r\n\r\n"),
            (page, b"GET /../../x HTTP/9.9\r\nX\r\n\r\n"),
        ):
            for _ in range(150):
                with socket.create_connection(("127.0.0.1", port), 10) as client:
                    client.settimeout(10)
                    client.sendall(data)
                    if b"passwd" not in data:  # a sender of files stays to be answered
                        client.shutdown(socket.SHUT_WR)
                    with suppress(ConnectionError):
                        while client.recv(65536):
                            pass
        program.waitFor("refused")
        assert program.output.count("\n") - before <= 10, program.output
        # what was left out is said at the end
        program.stop()
        assert re.search(r"\d\d+ more with this code", program.output), program.output


# -- log files


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize(
    "words",
    [
        ["--logger=connpool.services.logs.rotating"],
        ["--logger=connpool.services.logs.rotatingJSON"],
        ["--logfile=log"],
    ],
    ids=str,
)
def test_aRenamedLogIsWrittenAgain(words, number, tmp_path):
    log, old = tmp_path / "log", tmp_path / "log.old"
    command = [*PLAIN, *words, *ECHO, f"--status=unix:{tmp_path}/s"]
    with running(*command, cwd=tmp_path, CONNPOOL_LOG=str(log)) as program:
        assert serves(tmp_path / "s"), program.output
        for _ in range(2):
            os.replace(log, old)
            program.process.send_signal(number)
            assert within(log.exists, 30)
        assert program.stop() in {0, -signal.SIGTERM}
    assert "SIGTERM" in log.read_text()
    assert "SIGTERM" not in old.read_text()


@pytest.mark.parametrize(
    "words",
    [
        [*PLAIN],
        [*PLAIN, "--logger=connpool.services.logs.jsonLines"],
        [*PLAIN, "--logger=connpool.services.logs.rotating"],
        TWIST,
    ],
    ids=str,
)
def test_logrotatesSignalsNeverKill(words, tmp_path):
    with running(*words, *ECHO, f"--status=unix:{tmp_path}/s", cwd=tmp_path) as program:
        assert serves(tmp_path / "s"), program.output
        for number in (signal.SIGHUP, signal.SIGUSR1) * 3:
            program.process.send_signal(number)
        assert serves(tmp_path / "s")
        assert program.process.poll() is None


def test_twistdStillRotatesItsOwnLog(tmp_path):
    command = [*PLAIN, "--logfile=log", *ECHO, f"--status=unix:{tmp_path}/s"]
    with running(*command, cwd=tmp_path) as program:
        assert serves(tmp_path / "s")
        program.process.send_signal(signal.SIGUSR1)
        assert within((tmp_path / "log.1").exists)
        assert program.stop() in {0, -signal.SIGTERM}
    assert "SIGTERM" in (tmp_path / "log").read_text()


def test_aLogThatCannotBeOpenedAgain(tmp_path):
    log = tmp_path / "log"
    command = [*PLAIN, "--logger=connpool.services.logs.rotatingJSON", *ECHO]
    status = f"--status=unix:{tmp_path}/s"
    with running(*command, status, cwd=tmp_path, CONNPOOL_LOG=str(log)) as program:
        assert serves(tmp_path / "s")
        old = tmp_path / "old"
        os.replace(log, old)
        log.symlink_to("/etc/passwd")
        program.process.send_signal(signal.SIGHUP)
        assert within(lambda: "the old file stays in use" in old.read_text())
        assert all(json.loads(line) for line in old.read_text().splitlines())
