"""
What a process of ours owes its operator, seen from outside.
"""

import json
import os
import pwd
import resource
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.helpers.notifysocket import NotifySocket
from tests.helpers.processes import CHECKOUT, TWIST, TWISTD, connpool, finished, running, twistd

LISTEN = "--listen=tcp:0:interface=127.0.0.1"
LISTENS = r"listens on 127\.0\.0\.1:(\d+)"

asRoot = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")


@pytest.fixture
def systemd(tmp_path):
    listening = NotifySocket(tmp_path / "notify")
    yield listening
    listening.close()


def send(port, *files):
    sent = connpool("send", "--protocol=classic", f"--to=127.0.0.1:{port}", *files)
    # the classic protocol cannot confirm
    assert sent.returncode in {0, 9}, sent.stderr
    return sent


def test_systemdHearsOfItsLife(tmp_path, systemd):
    with twistd(
        *("filerecv", LISTEN),
        cwd=tmp_path,
        NOTIFY_SOCKET=systemd.address,
        WATCHDOG_USEC="200000",
    ) as program:
        assert systemd.receive() == ["READY=1", "STATUS=filerecv serves"]
        port = int(program.waitFor(LISTENS).group(1))
        socket.create_connection(("127.0.0.1", port), 20).close()
        for _ in range(3):
            assert systemd.receive() == ["WATCHDOG=1"]
        program.process.send_signal(signal.SIGHUP)
        systemd.waitFor("RELOADING=1")
        systemd.waitFor("READY=1")
        assert program.stop() in {0, -signal.SIGTERM}
        assert systemd.waitFor("STOPPING=1") == [
            "STOPPING=1",
            "STATUS=filerecv lets what runs end",
        ]


def test_nobodyHearsOfAServiceThatCannotStart(tmp_path, systemd):
    with twistd(
        *("filerecv", LISTEN, "--directory=none"), cwd=tmp_path, NOTIFY_SOCKET=systemd.address
    ) as program:
        assert program.process.wait(30) == 1
    with pytest.raises(TimeoutError):
        systemd.receive(0.05)


def test_aSecondSignalEndsTheDrain(tmp_path):
    with twistd("filerecv", LISTEN, cwd=tmp_path) as program:
        port = int(program.waitFor(LISTENS).group(1))
        with socket.create_connection(("127.0.0.1", port), 20) as sender:
            sender.sendall(b"name")
            assert sender.recv(2) == b"ok"
            sender.sendall(b"half")
            program.process.terminate()
            program.waitFor(rf"\(TCP Port {port} Closed\)")
            assert program.process.poll() is None
            program.process.send_signal(signal.SIGINT)
            assert program.process.wait(20) in {0, -signal.SIGTERM, -signal.SIGINT}
        program.waitFor("did not receive name")
        assert "Traceback" not in program.output
    assert not (tmp_path / "received" / "name").exists()


# -- certificates ---------------------------------------------------------------


def serial(port, authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with (
        socket.create_connection(("127.0.0.1", port), 20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        return secure.getpeercert()["serialNumber"]


def test_hangupReloadsCertificates(tmp_path, systemd):
    authority = trustme.CA()

    def renew():
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
            tmp_path / "server.pem"
        )

    renew()
    (tmp_path / "services.toml").write_text(
        """
        [services.inbox]
        plugin = "filerecv"
        listen = "secured:tcp:0:interface=127.0.0.1:certificate=server.pem"
        """
    )
    with twistd("compose", "services.toml", cwd=tmp_path, NOTIFY_SOCKET=systemd.address) as program:
        systemd.waitFor("READY=1")
        port = int(program.waitFor(LISTENS).group(1))

        def reload():
            program.process.send_signal(signal.SIGHUP)
            systemd.waitFor("RELOADING=1")
            return systemd.waitFor("READY=1")

        first = serial(port, authority)
        assert serial(port, authority) == first
        renew()
        assert reload() == ["READY=1", "STATUS=compose serves"]
        second = serial(port, authority)
        assert second != first
        (tmp_path / "server.pem").write_text("half a fi")
        status = reload()[1]
        assert status.startswith("STATUS=not reloaded: ")
        assert "server.pem" in status
        assert serial(port, authority) == second
        program.waitFor("what was there stays in use")
        assert "Traceback" not in program.output


# -- socket activation ----------------------------------------------------------


def activated(*passed, arguments, cwd, names="inbox"):
    """
    C{twistd} with sockets as its descriptors from 3 on, as systemd hands them over.
    """
    launch = (
        "import os, sys; count = int(sys.argv[1]); fds = list(map(int, sys.argv[2:2 + count]));"
        "copies = [os.dup2(fd, 100 + at) for at, fd in enumerate(fds)];"
        "[os.dup2(fd, 3 + at) for at, fd in enumerate(copies)];"
        "os.environ['LISTEN_PID'] = str(os.getpid());"
        "os.execv(sys.argv[2 + count], sys.argv[2 + count:])"
    )
    fds = [each.fileno() for each in passed]
    return running(
        *(sys.executable, "-c", launch, str(len(fds)), *map(str, fds)),
        *(*TWISTD, "-n", "--pidfile=", *arguments),
        cwd=cwd,
        descriptors=fds,
        LISTEN_FDS=str(len(fds)),
        LISTEN_FDNAMES=names,
    )


ACTIVATED = ("filerecv", "--listen=systemd:domain=INET:name=inbox", "--allow=127.0.0.0/8")


def test_whoConnectsBeforeTheStartAndBetweenTwoIsServed(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for number in range(2):
            name = f"file{number}"
            # systemd listens already
            early = socket.create_connection(listening.getsockname(), 30)
            early.sendall(name.encode())
            with activated(listening, arguments=ACTIVATED, cwd=tmp_path) as program:
                assert early.recv(2) == b"ok"
                early.sendall(b"contents")
                early.shutdown(socket.SHUT_WR)
                assert early.recv(1) == b""
                early.close()
                program.waitFor(f"received {name}")
                assert program.stop() in {0, -signal.SIGTERM}
            assert (tmp_path / "received" / name).read_bytes() == b"contents"


TCP, UDP, UNIX = socket.SOCK_STREAM, socket.SOCK_DGRAM, "unix"
INBOX = "systemd:domain=INET:name=inbox"


@pytest.mark.parametrize(
    ("kinds", "names", "listen", "says"),
    [
        ([TCP], "other", INBOX, "systemd passed no such socket"),
        ([TCP, TCP], "inbox:inbox", INBOX, "2 sockets with this name"),
        ([UDP], "inbox", INBOX, "not a stream socket; use ListenStream="),
        ([UNIX], "inbox", INBOX, "the socket is of domain=UNIX"),
        ([TCP], "inbox", "systemd:domain=INET6:name=inbox", "the socket is of domain=INET\n"),
        ([TCP], "inbox", "systemd:domain=UNIX:name=inbox", "the socket is of domain=INET\n"),
        ([TCP], "inbox", "systemd:domain=INET:index=1", "systemd passed no such socket"),
    ],
)
def test_aSocketThatDoesNotFitIsOneLine(tmp_path, kinds, names, listen, says):
    """
    Else a socket would be left that takes connections that nobody ever answers.
    """
    passed = []
    with ExitStack() as stack:
        for kind in kinds:
            family = socket.AF_UNIX if kind == UNIX else socket.AF_INET
            made = stack.enter_context(socket.socket(family, TCP if kind == UNIX else kind))
            made.bind(str(tmp_path / "s") if kind == UNIX else ("127.0.0.1", 0))
            if kind != UDP:
                made.listen()
            passed.append(made)
        arguments = ("filerecv", "--listen", listen, "--allow=127.0.0.0/8")
        with activated(*passed, arguments=arguments, cwd=tmp_path, names=names) as program:
            assert program.process.wait(30) == 1
    lines = [line for line in program.output.splitlines() if line.startswith("filerecv: ")]
    assert len(lines) == 1
    assert says in f"{lines[0]}\n"
    assert "Traceback" not in program.output


def test_aUnixSocketOfSystemdIsLocal(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        arguments = ("filerecv", "--listen=systemd:domain=UNIX:name=inbox")
        with activated(listening, arguments=arguments, cwd=tmp_path) as program:
            program.waitFor("filerecv listens on")


# -- users ----------------------------------------------------------------------


@asRoot
@pytest.mark.parametrize("command", [[*TWISTD, "-n", "--pidfile="], TWIST])
@pytest.mark.parametrize("plugin", ["filerecv", "udpecho"])
def test_notAsRootByAccident(tmp_path, command, plugin):
    listen = LISTEN if plugin == "filerecv" else LISTEN.replace("tcp", "udp")
    ended = finished(*command, plugin, listen, cwd=tmp_path, CONNPOOL_ALLOW_ROOT="")
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if line.startswith(f"{plugin}: ")]
    assert len(said) == 1, ended.stderr
    assert said[0].startswith(f"{plugin}: runs as root; ")
    assert "--allow-root" in said[0]
    assert "Traceback" not in ended.stdout + ended.stderr
    assert not (tmp_path / "received").exists()


@asRoot
def test_asRootOnPurpose(tmp_path):
    with twistd(
        "filerecv", LISTEN, "--allow-root", cwd=tmp_path, CONNPOOL_ALLOW_ROOT=""
    ) as program:
        program.waitFor(LISTENS)


def reachable(*paths):
    """
    Whether everybody may look into the directories of C{paths}.
    """
    return all(
        parent.stat().st_mode & stat.S_IXOTH
        for path in paths
        for parent in Path(os.path.realpath(path)).parents
    )


@asRoot
@pytest.mark.skipif(
    not reachable(sys.executable, CHECKOUT / "x"),
    reason="other users cannot read this Python or this checkout",
)
def test_rootListensAndNobodyServes():
    nobody = pwd.getpwnam("nobody")
    # not tmp_path: only its owner can look into that one
    work = Path(tempfile.mkdtemp(prefix="connpool-"))
    try:
        os.chown(work, nobody.pw_uid, nobody.pw_gid)
        (work / "a.txt").write_text("contents")
        with running(
            *(*TWISTD, "-n", "--pidfile=", "--uid", "nobody", "--gid", str(nobody.pw_gid)),
            *("--logger=connpool.services.logs.rotating", "filerecv"),
            *(LISTEN, "--listen=unix:inbox.socket"),
            cwd=work,
            CONNPOOL_ALLOW_ROOT="",
            CONNPOOL_LOG=str(work / "log"),
        ) as program:
            log = work / "log"
            port = _fromLog(log, program)
            status = Path(f"/proc/{program.process.pid}/status").read_text()
            assert f"Uid:\t{nobody.pw_uid}\t{nobody.pw_uid}\t{nobody.pw_uid}" in status
            send(port, work / "a.txt")
            received = work / "received" / "a.txt"
            assert received.read_text() == "contents"
            assert received.stat().st_uid == nobody.pw_uid
            assert program.stop() in {0, -signal.SIGTERM}
    finally:
        shutil.rmtree(work)


def _fromLog(log, program):
    import re
    import time

    end = time.monotonic() + 30
    while True:
        match = re.search(LISTENS, log.read_text() if log.exists() else "")
        if match:
            return int(match.group(1))
        assert program.process.poll() is None, program.output
        assert time.monotonic() < end
        time.sleep(0.02)


# -- descriptors and logs ---------------------------------------------------------


def test_theDescriptorLimitIsRaised(tmp_path):
    with running(
        *("sh", "-c", 'ulimit -Sn 200; exec "$@"', "sh"),
        *(*TWISTD, "-n", "--pidfile=", "filerecv", LISTEN),
        cwd=tmp_path,
    ) as program:
        program.waitFor(LISTENS)
        limits = Path(f"/proc/{program.process.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    assert soft == hard == str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


@pytest.mark.peer("jq")
def test_jqFindsTheReceiptOfAFile(tmp_path):
    (tmp_path / "a b.txt").write_text("contents")
    with running(
        *(*TWISTD, "-n", "--pidfile=", "--logger=connpool.services.logs.jsonLines"),
        *("filerecv", LISTEN),
        cwd=tmp_path,
    ) as program:
        port = int(program.waitFor(LISTENS).group(1))
        send(port, tmp_path / "a b.txt")
        program.waitFor("received a b.txt")
        program.stop()
    found = subprocess.run(
        ["jq", "-c", "select(.receipt) | .receipt"],
        input=program.output,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    (receipt,) = map(json.loads, found.stdout.splitlines())
    assert (receipt["name"], receipt["size"], receipt["status"]) == ("a b.txt", 8, "stored")
    assert len(receipt["transferId"]) == 32
