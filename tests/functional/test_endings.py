"""
What ends a sender ends it soon and says why; hints work when they are pasted; a newcomer on
a file system in memory succeeds.
"""

# ruff: noqa: F811 - fixtures of another module

import datetime as dt
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.python import usage

from connpool.addresses import clientEndpoint
from connpool.errors import TransferError
from connpool.services import filesend
from connpool.transfer import Credentials, sendFiles
from connpool.transfer.send.classic import sendClassic
from connpool.transfer.send.client import Retry
from tests.conftest import filesystemOf
from tests.functional.test_credentials import (  # noqa: F401 - fixtures
    SECRET,
    Authority,
    authority,
    passwords,
    receiving,
    secured,
)
from tests.helpers.processes import CONNPOOL, Popen, connpool, environment, twistd, within
from tests.helpers.receiving import Receiving, content
from tests.helpers.waiting import bounded, pause
from tests.transfer import peer

SEND = [*CONNPOOL, "send"]
WAYS = pytest.mark.parametrize("protocol", ["native", "classic"])
EXPIRED = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


async def ended(protocol, to, file, ca=None, **more):
    """
    @return: the error of a sender that would try for a minute if it could.
    """
    endpoint = clientEndpoint(reactor, to, ca=None if ca is None else str(ca))
    if protocol == "classic":
        sending = Deferred.fromCoroutine(sendClassic(reactor, endpoint, str(file)))
        with pytest.raises(TransferError) as caught:
            await bounded(sending, 10)
        await pause(0.02)  # what is aborted goes on a later turn
        return caught.value
    report = await bounded(sendFiles(reactor, endpoint, [str(file)], retry=Retry(), **more), 10)
    (outcome,) = report.outcomes
    assert report.connections == 0
    return outcome.error


@WAYS
@pytest.mark.parametrize(
    ("names", "trusted", "host", "why"),
    [
        (("localhost",), None, "localhost", "no authority known here signed it"),
        (("localhost",), "other", "localhost", "no authority known here signed it"),
        (("example.org",), "ours", "localhost", "not for localhost; it is for example.org"),
        (("localhost",), "ours", "127.0.0.1", "not for 127.0.0.1; it is for localhost"),
        (("expired",), "ours", "localhost", "it expired on 2020-01-01"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_aCertificateThatDoesNotVerify(
    authority,
    file,
    receiving,
    tmp_path,
    protocol,
    names,
    trusted,
    host,
    why,
):
    other = Authority(tmp_path / "other")
    if names == ("expired",):
        server = authority.issue("server", "localhost", not_after=EXPIRED)
    else:
        server = authority.issue("server", *names)
    port = receiving("--listen", secured(server))
    ca = {None: None, "ours": authority, "other": other}[trusted]
    ca = None if ca is None else ca.directory / "ca.pem"
    error = await ended(protocol, f"tls:{host}:{port}", file, ca)
    assert why in str(error)
    assert "certificate" in str(error)
    assert (error.code, error.exitCode) == ("certificate", 7)


@WAYS
@pytest.mark.parametrize("shown", [None, "stranger"])
@pytest_twisted.ensureDeferred
async def test_aClientsCertificateThatIsRefused(
    authority,
    file,
    receiving,
    tmp_path,
    protocol,
    shown,
):
    server = authority.issue("server", "localhost")
    ca = authority.directory / "ca.pem"
    port = receiving("--listen", secured(server, ca))
    to = f"tls:localhost:{port}"
    if shown is not None:
        to += f":certificate={Authority(tmp_path / 'other').issue('me', 'me@example.org')}"
    error = await ended(protocol, to, file, ca)
    assert (error.code, error.exitCode) == ("certificate", 7)
    assert "certificate=FILE" in str(error)


@pytest_twisted.ensureDeferred
async def test_privateAuthorities(authority, file, receiving):
    """
    A file, a directory, the receiver's own certificate; an option, or in the string.
    """
    server = authority.issue("server", "localhost", "127.0.0.1")
    ca = authority.directory / "ca.pem"
    port = receiving("--listen", secured(server))
    for to, option in [
        (f"tls:localhost:{port}", ca),
        (f"tls:localhost:{port}", authority.directory),
        (f"tls:127.0.0.1:{port}", server),
        (f"tls:localhost:{port}:trustRoots={ca}", None),
        (f"tls:localhost:{port}:trustRoots={authority.directory}", None),
    ]:
        endpoint = clientEndpoint(reactor, to, ca=None if option is None else str(option))
        report = await bounded(sendFiles(reactor, endpoint, [str(file)], retry=Retry(attempts=1)))
        assert report.exitCode == 0, report.outcomes


@WAYS
@pytest_twisted.ensureDeferred
async def test_TLSOnOneSideOnly(authority, tmp_path, receiving, protocol):
    file = tmp_path / "a name that is longer than a record's header"
    file.write_bytes(b"content")
    ca = authority.directory / "ca.pem"
    port = receiving("--listen", secured(authority.issue("server", "localhost")))
    error = await ended(protocol, f"127.0.0.1:{port}", file)
    assert "speaks TLS; write --to tls:HOST:PORT" in str(error)
    assert error.exitCode == 7
    port = receiving("--listen", "tcp:0:interface=127.0.0.1")
    error = await ended(protocol, f"tls:localhost:{port}", file, ca)
    assert "does not speak TLS on this port" in str(error)
    assert error.exitCode == 7


@WAYS
@pytest.mark.parametrize("tls", [False, True])
@pytest_twisted.ensureDeferred
async def test_anAddressThatIsLeftOut(authority, file, receiving, protocol, tls):
    listen = secured(authority.issue("server", "localhost")) if tls else "tcp:0:interface=127.0.0.1"
    port = receiving("--listen", listen, "--allow", "192.0.2.0/24")
    with capturedLogs() as events:
        to = f"tls:localhost:{port}" if tls else f"127.0.0.1:{port}"
        error = await ended(protocol, to, file, authority.directory / "ca.pem" if tls else None)
    assert (error.code, error.exitCode) == ("forbidden", 4)
    assert "--allow" in str(error)
    lines = [formatEvent(event) for event in events if "refused" in (formatEvent(event) or "")]
    assert lines == ["filerecv refused 1 connection from 127.0.0.1: --allow does not name it"]


@pytest_twisted.ensureDeferred
async def test_aWrongPasswordOverAPoolIsFinalToo(tmp_path, authority, file, receiving):
    from connpool.pool import ConnectionPool
    from connpool.transfer.send.connections import SessionFactory, hello

    server = authority.issue("server", "localhost")
    port = receiving("--listen", secured(server), passwords(tmp_path))
    endpoint = clientEndpoint(reactor, f"tls:localhost:{port}", ca=str(server))
    factory = SessionFactory(reactor, credentials=Credentials("alice", SECRET + b"?"))
    pool = ConnectionPool(reactor, endpoint, factory, prepare=hello, maxSize=2, minIdle=0)
    report = await bounded(sendFiles(reactor, None, [str(file)], pool=pool, jobs=2), 10)
    assert report.exitCode == 6
    await bounded(pool.close())


# -- the command ---------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--max-connections", "--max-per-address"])
def test_aReceiverThatLetsOneConnectionIn(tmp_path, option):
    (tmp_path / "large").write_bytes(content(40 << 20))
    with Receiving(tmp_path, option, "1") as receiver:
        # a bound below the pool's 30 s
        done = receiver.send("--jobs", "8", tmp_path / "large", timeout=20)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("going on with fewer than 8 connections: ") == 1
        assert "as many connections as it takes" in done.stderr
        assert receiver.files() == {"large": content(40 << 20)}


def test_aNewcomerInMemorySucceeds():
    if filesystemOf("/dev/shm") != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs")
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        (path / "file").write_bytes(b"x")
        with Receiving(path) as receiver:
            state = {"XDG_STATE_HOME": str(path / "state")}
            done = connpool("send", "--to", receiver.place, path / "file", **state)
            assert done.returncode == 0, done.stderr
            (line,) = done.stderr.splitlines()
            assert line.endswith("durability none (on tmpfs)")
            done = connpool("send", "--json", "--to", receiver.place, path / "file", **state)
            said = json.loads(done.stdout)
            assert (said["asked"], said["good"]) == ("best", True)
            assert said["receipt"]["durability"] == "none"
            done = receiver.send(path / "file", durability="full")
            assert done.returncode == 3
            assert "at durability none on tmpfs, not full" in done.stderr
    finally:
        shutil.rmtree(path)


def test_onADiskTheBestIsFull(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with Receiving(tmp_path) as receiver:
        done = connpool("send", "--to", receiver.place, tmp_path / "file")
        assert done.returncode == 0, done.stderr
        assert done.stderr.rstrip().endswith("durability full")


@pytest.mark.parametrize(
    ("knows", "asked"),
    [
        ({"capabilities": ("best",)}, ["best", "best"]),
        ({}, ["full", "full"]),
        ({"refuses": ("full", "data")}, ["full", "full", "data", "data", "none", "none"]),
    ],
)
def test_aPeerWrittenFromTheDocumentIsAskedForTheBest(tmp_path, knows, asked):
    source = tmp_path / "source"
    source.mkdir()
    (source / "small").write_bytes(b"x")
    (source / "large").write_bytes(content(1 << 20))
    served = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(30)
                served.append(peer.Receiver(connection, **knows))
                served[0].serve()

        thread = threading.Thread(target=serve)
        thread.start()
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        done = connpool("send", "--to", place, source, XDG_STATE_HOME=str(tmp_path / "state"))
        thread.join(30)
    assert done.returncode == 0, done.stderr
    assert sorted(served[0].asked) == sorted(asked)
    assert "durability none (on memory)" in done.stderr


def test_aPeerWrittenFromTheDocumentAsksForTheBest(tmp_path):
    with Receiving(tmp_path) as receiver:
        sender = peer.Sender(receiver.connect()).greet()
        assert sender.best
        stream = sender.put(b"small", b"x", durability="best")
        kind, fields = sender.answers([stream])[stream]
        sender.socket.close()
        assert (kind, fields[1]) == (peer.ACK, "full")


def test_waitsAreSaid(tmp_path):
    """
    Nothing but the reason: no "sending: 0 B".
    """
    (tmp_path / "file").write_bytes(b"x")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hangUp():
            for _ in range(4):
                listener.accept()[0].close()

        thread = threading.Thread(target=hangUp)
        thread.start()
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        done = connpool("send", "--json", "--to", place, tmp_path / "file", timeout=30)
        thread.join(10)
    assert done.returncode == 7
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    assert all("before it said anything" in line for line in lines)
    assert [line.rpartition("; ")[2].startswith("trying again in ") for line in lines] == [
        True, True, True, False,
    ]  # fmt: skip
    *waits, last = map(json.loads, done.stdout.splitlines())
    assert [wait["status"] for wait in waits] == ["waiting"] * 3
    assert {wait["wait"]["for"] for wait in waits} == {"network"}
    assert all(wait["wait"]["seconds"] >= 0 for wait in waits)
    assert last["error"]["code"] == "unanswered"
    # a program that reads files' lines finds the same keys
    assert set(last) <= set(waits[0])


def test_aPlaceThatIsWaitedForIsSaid(tmp_path):
    (tmp_path / "file").write_bytes(content(1 << 20))
    with Receiving(tmp_path, "--max-transfers", "1") as receiver:
        held = Popen(
            [*CONNPOOL, "send", "--to", receiver.place, "--name", "held", "-"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        waiting = None
        try:
            held.stdin.write(b"x" * 100_000)
            held.stdin.flush()
            # it has the place
            assert within(lambda: receiver.written() > 0)
            waiting = Popen(
                [*SEND, "--to", receiver.place, str(tmp_path / "file")],
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
            )
            line = waiting.stderr.readline()
            assert line.startswith("connpool send: file: waiting for a place: ")
            held.stdin.close()
            assert held.wait(20) == 0
            assert waiting.wait(20) == 0
        finally:
            for process in filter(None, (held, waiting)):
                if process.poll() is None:
                    process.kill()
                process.wait(10)
            if waiting is not None:
                waiting.stderr.close()


def test_hintsWorkWhenTheyArePasted(tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    authority = Authority(tmp_path / "authority")
    server = authority.issue("server", "localhost", "127.0.0.1")
    away = authority.issue("away", "inbox.example")
    me = authority.issue("me", "me@example.org")
    shutil.copy(me, tmp_path / "CLIENT.pem")
    (tmp_path / "FILE").write_bytes(b"content")
    ca = authority.directory / "ca.pem"
    (tmp_path / "a b").mkdir()
    listens = [
        "tcp:0",
        r"tcp:0:interface=\:\:1",
        f"unix:{tmp_path}/s",
        f"unix:{tmp_path}/a b/s",
        f"secured:tcp:0:certificate={server}",
        rf"secured:tcp:0:interface=\:\:1:certificate={server}",
        f"secured:tcp:0:certificate={away}",
        f"secured:unix:{tmp_path}/t:certificate={server}",
        f"secured:tcp:0:certificate={server}:trustRoots={ca}",
        f"ssl:0:privateKey={server}:certKey={server}",
        "proxied:tcp:0:trusted=127.0.0.1",
        f"secured:proxied:tcp:0:trusted=127.0.0.1:certificate={server}",
        f"proxied:secured:tcp:0:trusted=127.0.0.1:certificate={server}",
    ]
    options = [word for listen in listens for word in ("--listen", listen)]
    allowed = ["--allow", "127.0.0.0/8", "--allow", "::1"]
    (tmp_path / "inbox").mkdir()
    with twistd(
        "filerecv", "--directory", tmp_path / "inbox", *allowed, *options, cwd=tmp_path
    ) as program:

        def hints():
            return re.findall(r"(?:send one|or) with: (.*)\n", program.output)

        def allThere():
            # some can be reached by curl as well
            native = sum(hint.startswith("connpool ") for hint in hints())
            return "elsewhere: " in program.output and native == len(listens)

        assert within(allThere), program.output
        found = hints()
        assert not any("0.0.0.0" in hint or "[::]" in hint for hint in found)
        script = "".join(
            f"{hint} || echo failed: '{number}'\n" for number, hint in enumerate(found)
        )
        body = script.replace("connpool send", f"{sys.executable} -m connpool send")
        done = subprocess.run(
            ["bash", "-c", body],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env=environment(XDG_STATE_HOME=str(tmp_path / "state")),
        )
        assert "failed: " not in done.stdout, (found, done.stdout, done.stderr)
        assert "Traceback" not in program.output


def test_aPasswordIsPartOfTheHint(tmp_path):
    (tmp_path / "passwords").write_text("alice:secret\n")
    (tmp_path / "inbox").mkdir()
    with twistd(
        *("filerecv", "--directory", tmp_path / "inbox", "--auth", f"file:{tmp_path}/passwords"),
        *("--listen", "tcp:0:interface=127.0.0.1"),
        cwd=tmp_path,
    ) as program:
        hint = program.waitFor("send one with: (.*)")[1]
    assert hint.endswith(" --credentials CREDENTIALS FILE")


# -- the option ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "ca", "why"),
    [
        ("tls:localhost", "missing.pem", "--ca 'missing.pem': No such file or directory"),
        ("tls:localhost", "empty", "has no *.pem files"),
        ("tls:localhost", "broken.pem", "no valid certificate in PEM form"),
        ("localhost:8640", "broken.pem", "--ca is about TLS"),
        ("unix:/run/s", "broken.pem", "--ca is about TLS"),
        ("tls:localhost:trustRoots=broken.pem", "broken.pem", "say the same"),
    ],
)
def test_anAuthorityThatCannotBeUsed(tmp_path, monkeypatch, to, ca, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    done = connpool("send", "--to", to, "--ca", ca, "x")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert why in line
    options = filesend.Options()
    with pytest.raises(usage.UsageError) as caught:
        options.parseOptions(["--directory", str(tmp_path), "--to", to, "--ca", ca])
    assert why in str(caught.value)
