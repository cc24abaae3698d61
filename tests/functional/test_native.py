"""
The native protocol through real sockets and processes.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import threading
import time

import pytest

from tests.helpers.processes import CONNPOOL, connpool, environment, run, running, within
from tests.helpers.receiving import Receiving, content
from tests.helpers.trees import checkpointed
from tests.transfer import peer
from tests.transfer.hostile import CORPUS

MIB = 1 << 20


def test_commandSendsADirectory(receiving, source, tmp_path):
    wanted = {}
    for number in range(300):
        path = source / f"d{number % 5}" / f"{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content(number * 7, number))
        wanted[f"source/d{number % 5}/{number}"] = path.read_bytes()
    (source / "large").write_bytes(content(9 * MIB + 12_345))
    wanted["source/large"] = content(9 * MIB + 12_345)
    (source / "run").write_bytes(b"#!/bin/sh\n")
    (source / "run").chmod(0o755)
    wanted["source/run"] = b"#!/bin/sh\n"
    receipts = tmp_path / "receipts"
    done = receiving.send(source, "--receipt", receipts)
    assert done.returncode == 0, done.stderr
    assert receiving.files() == wanted
    lines = [json.loads(line) for line in receipts.read_text().splitlines()]
    assert {line["name"] for line in lines} == set(wanted)
    assert {(line["integrity"], line["digest"]) for line in lines} == {("verified", "blake3")}
    assert "302 files" in done.stderr
    again = receiving.send(source)
    assert again.returncode == 0
    assert "302 were there already" in again.stderr
    assert receiving.files() == wanted


def test_commandOutputs(receiving, source):
    (source / "a").write_bytes(b"x")
    done = receiving.send("--json", source / "a", source / "missing")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    codes = {line["path"]: line["error"] and line["error"]["code"] for line in lines}
    assert codes == {str(source / "a"): None, str(source / "missing"): "source-error"}
    assert done.returncode == 3
    dry = receiving.send("--dry-run", source / "a")
    assert dry.returncode == 0
    assert "would be taken" in dry.stderr
    missing = receiving.send("--receipt", source / "no" / "such", source / "a")
    assert missing.returncode == 2
    assert len(missing.stderr.splitlines()) == 1
    refused = connpool("send", "--to", "127.0.0.1:1", source / "a")
    assert refused.returncode == 7
    assert len(refused.stderr.splitlines()) == 1
    for number in range(100):
        (source / f"{number}").write_bytes(b"")
    refused = connpool("send", "--to", "127.0.0.1:1", source)
    assert refused.returncode == 7
    *named, rest = refused.stderr.splitlines()
    assert len(named) == 3
    assert rest.startswith("connpool send: 98 more files: cannot connect")


def test_standardInput(receiving, tmp_path):
    data = content(3 * MIB + 5)
    done = run(
        [
            *(*CONNPOOL, "send", "--to", receiving.place),
            *("--durability", "none", "--name", "dump.sql", "-"),
        ],
        said=data,
        env=environment(XDG_STATE_HOME=str(tmp_path / "state")),
    )
    assert done.returncode == 0, done.stderr
    assert receiving.files() == {"dump.sql": data}


@pytest.mark.parametrize("digest", ["sha256", "blake3"])
def test_jobs(receiving, source, digest):
    data = content(64 * MIB + 1)
    (source / "a").write_bytes(data)
    done = receiving.send("--jobs", "3", "--digests", digest, source / "a")
    assert done.returncode == 0, done.stderr
    assert receiving.files() == {"a": data}


def test_durabilityOnATemporaryFileSystem(source, tmp_path):
    shm = "/dev/shm"
    if not os.access(shm, os.W_OK):
        pytest.skip("there is no writable tmpfs")
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(dir=shm) as directory:
        receiving = Receiving(Path(directory))
        (source / "a").write_bytes(b"x")
        with receiving:
            done = receiving.send(source / "a", durability="full")
            assert done.returncode == 3
            assert "--durability none" in done.stderr
            assert receiving.files() == {"a": b"x"}


def test_aSenderThatEndsInsideARunIsNoticedAtOnce(receiving):
    """
    The run is read from a borrowed socket, and the end is not for it: neither
    waiting for the idle timeout nor going round and round.
    """
    sender = peer.Sender(receiving.connect()).greet()
    stream, _ = sender.offer(b"large", bytes(4 * MIB), MIB)
    control = peer.pack([0, []])
    sender.socket.sendall(peer.head(peer.DATA, control, stream, 4 * MIB) + control + bytes(MIB))
    time.sleep(0.2)
    with contextlib.closing(sender.socket) as s:
        s.shutdown(socket.SHUT_WR)
        s.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while s.recv(65536):
                pass
    receiving.program.waitFor("after 1048576 bytes: network:")


# -- a peer written from the document -------------------------------------------------


def test_peerSends(receiving):
    sender = peer.Sender(receiving.connect()).greet()
    streams = {sender.put(b"small/%d" % n, content(n * 10, n)): n for n in range(50)}
    answers = sender.answers(streams)
    assert {kind for kind, _ in answers.values()} == {peer.ACK}
    bad = sender.put(b"../up", b"x")
    kind, fields = sender.answers([bad])[bad]
    assert (kind, fields[0]) == (peer.REJECT, "name-refused")
    data = content(3 * MIB + 17)
    stream, missing = sender.offer(b"large", data, 1 << 16)
    assert missing == list(range(49))
    random.Random(3).shuffle(missing)
    sender.blocks(stream, data, 1 << 16, missing[:20])
    sender.blocks(stream, data, 1 << 16, missing[20:40], digestsFirst=True)
    # nine are forgotten: COMMIT brings them up
    kind, fields = sender.commit(stream, data, 1 << 16)
    assert (kind, fields[0], fields[5]) == (peer.RECEIPT, "stored", "verified")
    batch = sender.puts([(b"small/b%d" % n, content(n, n)) for n in range(60)] + [(b"../x", b"")])
    answers = sender.answers(batch)
    assert {answers[stream][0] for stream in batch[:-1]} == {peer.ACK}
    assert answers[batch[-1]][1][0] == "name-refused"
    made = [sender.directory(b"tree/empty", -1_500_000_000), sender.directory(b"small", 10**18)]
    bad = sender.directory(b"../up")
    answers = sender.answers([*made, bad])
    assert {answers[stream][0] for stream in made} == {peer.ACK}
    assert answers[bad][1][0] == "name-refused"
    assert (receiving.root / "tree/empty").stat().st_mtime_ns == -1_500_000_000
    assert (receiving.root / "small").stat().st_mtime_ns == 10**18
    sender.socket.close()
    files = receiving.files()
    assert files.pop("large") == data
    assert [files.pop(f"small/b{n}") for n in range(60)] == [content(n, n) for n in range(60)]
    assert files == {f"small/{n}": content(n * 10, n) for n in range(50)}


def test_peerTellsHoles(receiving):
    block, data = 1 << 16, b"x" * 100 + bytes(9 * (1 << 16)) + b"end"
    sender = peer.Sender(receiving.connect()).greet()
    stream, missing = sender.offer(b"sparse", data, block)
    sender.send(peer.DATA, stream, [0], data[:100])
    sender.hole(stream, 100, block - 100)
    sender.send(peer.DIGESTS, stream, [0], peer.digests(data[:block], block)[0])
    sender.hole(stream, block, 8 * block)
    sender.blocks(stream, data, block, missing[-1:])
    kind, fields = sender.commit(stream, data, block)
    assert (kind, fields[0], fields[5]) == (peer.RECEIPT, "stored", "verified")
    sender.socket.close()
    assert receiving.files() == {"sparse": data}
    assert (receiving.root / "sparse").stat().st_blocks * 512 <= 3 * block


def test_peerSendsCompressed(receiving):
    block = 1 << 16
    data = b"x" * block + b"y" * 5000 + b"z" * (block - 5000) + b"end" * 5000
    sender = peer.Sender(receiving.connect()).greet()
    stream, missing = sender.offer(b"packed", data, block)
    sender.repeated(stream, 0, b"x", block)
    sender.repeated(stream, block, b"y", 5000)
    sender.repeated(stream, block + 5000, b"z", block - 5000)
    sender.send(peer.DIGESTS, stream, [0], b"".join(peer.digests(data, block)[:2]))
    sender.blocks(stream, data, block, missing[2:])
    kind, fields = sender.commit(stream, data, block)
    assert (kind, fields[0]) == (peer.RECEIPT, "stored")
    sender.socket.close()
    assert receiving.files() == {"packed": data}


def test_commandCompresses(receiving, source):
    text = b"".join(b"%d: request %d took %d ms\n" % (n, n * 31, n % 977) for n in range(100_000))
    (source / "log").write_bytes(text)
    lines = {}
    for option in (["--compress=always"], ["--no-compress"], []):
        done = receiving.send("--json", *option, source / "log")
        assert done.returncode == 0, done.stderr
        (lines[*option],) = [
            line for line in map(json.loads, done.stdout.splitlines()) if line["path"]
        ]
        (receiving.root / "log").unlink()
        shutil.rmtree(receiving.tmp_path / "state")
    saved = {option: line["receipt"]["savedBytes"] for option, line in lines.items()}
    assert saved["--compress=always",] > len(text) / 2
    assert saved["--no-compress",] == 0
    assert saved[()] > len(text) / 2
    assert len({line["receipt"]["root"] for line in lines.values()}) == 1
    piped = run(
        [*CONNPOOL, "send", "--to", receiving.place, "--compress=always", "--name=p", "-"],
        said=text,
        env=environment(XDG_STATE_HOME=str(receiving.tmp_path / "piped")),
    )
    assert piped.returncode == 0, piped.stderr
    assert "compressed to" in str(piped.stderr)
    assert receiving.files() == {"p": text}


def test_aReceiverThatTakesNothingCompressed(source, tmp_path):
    (source / "log").write_bytes(b"the same line\n" * 50_000)
    with Receiving(tmp_path, "--no-compression") as there:
        done = there.send("--compress=always", "--json", source / "log")
        assert done.returncode == 0, done.stderr
        assert '"savedBytes":0' in done.stdout.replace(" ", "")
        assert there.files()["log"] == b"the same line\n" * 50_000


def test_peerAsks(receiving):
    sender = peer.Sender(receiving.connect()).greet()
    sender.answers([sender.put(b"dir/f", b"content")])
    modified = (receiving.root / "dir/f").stat().st_mtime_ns
    assert sender.ask(
        [
            (b"dir/f", 7, modified, b""),
            (b"dir/f", 7, None, peer.root(b"content", peer.SMALL_BLOCK)),
            (b"dir/f", 7, modified + 1, b""),
            (b"dir/f", 7, None, peer.root(b"contend", peer.SMALL_BLOCK)),
            (b"none", 7, modified, b""),
        ]
    ) == [1, 1, 0, 0, 2]
    (receiving.root / "theirs").write_bytes(b"content")
    modified = (receiving.root / "theirs").stat().st_mtime_ns
    assert sender.ask([(b"theirs", 7, modified, b"")]) == [2]
    sender.socket.close()


def test_peerIsAsked(source, tmp_path):
    for number in range(700):
        (source / f"{number}").write_bytes(b"x" * number)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        served = []

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(30)
                receiver = peer.Receiver(connection, ["puts", "update"])
                receiver.files = {b"source/%d" % n: b"x" * n for n in range(0, 700, 2)}
                receiver.serve()
                served.append(receiver)

        thread = threading.Thread(target=serve)
        thread.start()
        place = f"127.0.0.1:{listener.getsockname()[1]}"
        state = {"XDG_STATE_HOME": str(tmp_path / "state")}
        done = connpool("send", "--to", place, "--update", "--durability=none", source, **state)
        thread.join(30)
    assert done.returncode == 0, done.stderr
    (receiver,) = served
    assert "350 files, unchanged at the receiver" in done.stderr
    assert "350 files of which the receiver tells nothing" in done.stderr
    assert receiver.files == {b"source/%d" % n: b"x" * n for n in range(700)}


def test_commandSendsWhatChanged(receiving, source):
    for number in range(50):
        (source / f"{number}").write_bytes(content(number, number))
    for option in ([], ["--checksum"]):
        receiving.send("--update", *option, source)
        (source / "7").write_bytes(b"other")
        done = receiving.send("--update", *option, "--json", source)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        counts = {line["status"] for line in lines if line["path"] and line["name"] != "source/7"}
        assert counts == {"unchanged"}
        assert "49 files, unchanged at the receiver and not sent" in done.stderr
        (source / "7").write_bytes(content(7, 7))
    done = receiving.send("--checksum", source)
    assert done.returncode == 2
    assert "add --update" in done.stderr
    classic = receiving.send("--update", "--protocol=classic", source / "7")
    assert classic.returncode == 2


def test_peerJoinsAndResumes(receiving):
    data = content(2 * MIB)
    block = 1 << 16
    first = peer.Sender(receiving.connect()).greet()
    stream, missing = first.offer(b"f", data, block, resumeKey=b"k" * 32)
    second = peer.Sender(receiving.connect()).greet().join(first.ticket)
    first.blocks(stream, data, block, missing[:8])
    second.blocks(stream, data, block, missing[8:16])
    first.ping()
    second.ping()
    first.socket.close()
    second.socket.close()
    changed = b"!" + data[1:]
    third = peer.Sender(receiving.connect()).greet()
    stream, missing = third.offer(b"f", changed, block, resumeKey=b"k" * 32)
    assert missing == [0, *range(16, 32)]
    third.blocks(stream, changed, block, missing)
    kind, _ = third.commit(stream, changed, block)
    assert kind == peer.RECEIPT
    third.socket.close()
    assert receiving.files() == {"f": changed}


@pytest.mark.parametrize("together", [True, False])
def test_peerReceives(source, tmp_path, together):
    (source / "small").write_bytes(b"x" * 4096)
    (source / "large").write_bytes(content(2 * MIB + 3))
    with (source / "sparse").open("wb") as file:
        file.write(b"begin")
        file.truncate(5 * MIB + 1)
    for number in range(100):
        (source / f"{number}").write_bytes(b"%d" % number)
    (source / "empty").mkdir()
    os.utime(source / "empty", ns=(0, 123_456_789))
    os.utime(source, ns=(0, 10**18 + 1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        served = []

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(30)
                receiver = peer.Receiver(connection, ["puts", "holes"] * together)
                receiver.serve()
                served.append(receiver)

        thread = threading.Thread(target=serve)
        thread.start()
        done = connpool(
            "send",
            "--to",
            f"127.0.0.1:{listener.getsockname()[1]}",
            "--durability",
            "none",
            source,
            XDG_STATE_HOME=str(tmp_path / "state"),
        )
        thread.join(30)
    assert done.returncode == 0, done.stderr
    (receiver,) = served
    assert receiver.damaged
    assert receiver.files == {
        b"source/small": b"x" * 4096,
        b"source/large": content(2 * MIB + 3),
        b"source/sparse": b"begin" + bytes(5 * MIB - 4),
        **{b"source/%d" % number: b"%d" % number for number in range(100)},
    }
    # a file that is alone goes alone, also where they could go together
    assert receiver.frames[peer.PUTS] == (1 if together else 0)
    assert receiver.frames[peer.PUT] == (0 if together else 101)
    # the rest of the first block, and four whole ones
    assert receiver.frames[peer.HOLE] == (2 if together else 0)
    assert receiver.directories == {b"source/empty": 123_456_789, b"source": 10**18 + 1}


def test_everyHostileNameThroughASocket(receiving, tmp_path):
    """
    An independent look at the disk: nothing outside the root, nothing refused.
    """
    before = {path for path in tmp_path.rglob("*") if receiving.root not in path.parents}
    sender = peer.Sender(receiving.connect()).greet()
    streams = {}
    for hostile in CORPUS:
        if len(hostile.raw) <= 49_152:
            streams[sender.put(hostile.raw, b"x")] = hostile
    answers = sender.answers(streams)
    sender.socket.close()
    for stream, (kind, fields) in answers.items():
        refused = kind == peer.REJECT and fields[0] == "name-refused"
        assert refused == (not streams[stream].portable), streams[stream]
    after = {path for path in tmp_path.rglob("*") if receiving.root not in path.parents}
    assert after == before
    portable = {hostile.raw for hostile in CORPUS if hostile.portable}
    stored = {os.fsencode(name) for name in receiving.files()}
    # two names that differ in case or form only make a numbered second one
    assert len(stored - portable) <= len(portable)
    assert not any(b".." in name.split(b"/") for name in stored)


def test_classicReceiver(source):
    (source / "a").write_bytes(b"x")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(30)
                connection.recv(100)
                connection.sendall(b"ok")
                with contextlib.suppress(ConnectionResetError):
                    while connection.recv(100):  # until it was heard
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        done = connpool("send", "--to", f"127.0.0.1:{listener.getsockname()[1]}", source / "a")
        thread.join(30)
    assert done.returncode == 7
    assert "--protocol classic" in done.stderr


# -- broken connections and processes ----------------------------------------------------


class Proxy:
    """
    Passes bytes on; holds them back after a number of them, until released.
    """

    def __init__(self, port):
        self.port = port
        self.limit = None
        self.passed = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.pairs = []
        self.reached = threading.Event()
        self.go = threading.Event()
        self.closed = False
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                if self.closed:
                    return
                client.close()
                continue
            self.pairs.append((client, server))
            for pair in ((client, server, True), (server, client, False)):
                threading.Thread(target=self.pump, args=pair, daemon=True).start()

    def pump(self, source, target, counted):
        try:
            while data := source.recv(65536):
                if counted and self.limit is not None:
                    room = self.limit - self.passed
                    if len(data) >= room:
                        target.sendall(data[:room])
                        self.passed += room
                        self.reached.set()
                        self.go.wait(30)
                        data = data[room:]
                        self.limit = None
                self.passed += counted * len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def cut(self, how):
        for pair in self.pairs:
            for s in pair:
                if how == "rst":
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                try:
                    s.shutdown(socket.SHUT_RDWR) if how == "fin" else None
                finally:
                    s.close()
        self.pairs = []
        self.limit = None
        self.go.set()

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.closed = True
        self.go.set()
        self.listener.close()
        for pair in self.pairs:
            for s in pair:
                s.close()


def held(stderr):
    """
    What the summary says was held before, in MiB.
    """
    import re

    match = re.search(r"([\d.]+) (KiB|MiB) of it held before", stderr)
    return 0 if match is None else float(match[1]) / (1 if match[2] == "MiB" else 1024)


@pytest.mark.parametrize("who", ["sender", "receiver", "both"])
def test_killedHalfWay(tmp_path, source, who):
    """
    SIGKILL in the middle of a file; what was checkpointed is not sent again.
    """
    data = content(160 * MIB // 4)
    (source / "a").write_bytes(data)
    receiving = Receiving(tmp_path)
    state = str(tmp_path / "state")
    with receiving, Proxy(receiving.port) as proxy:
        proxy.limit = 30 * MIB
        command = [*CONNPOOL, "send", "--to", proxy.place]
        command += ["--durability", "none", source / "a"]
        with running(*command, XDG_STATE_HOME=state) as sender:
            assert proxy.reached.wait(30)
            assert within(lambda: checkpointed(receiving.root))
            if who != "receiver":
                sender.process.kill()
            if who != "sender":
                receiving.kill()
                receiving.__enter__()
            proxy.cut("rst")
            if who == "receiver":
                sender.process.wait(60)
                output = sender.output
                code = sender.process.returncode
        if who != "receiver":
            done = connpool(*command[3:], XDG_STATE_HOME=state)
            output, code = done.stderr, done.returncode
        assert code == 0, output
        assert receiving.files() == {"a": data}
        # what a command sent itself it does not call "held before"
        assert held(output) > 0 or who == "receiver", output
        assert proxy.passed < 30 * MIB + len(data), "everything was sent again"
        assert "Traceback" not in receiving.program.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruptedLeavesWhatCanBeResumed(tmp_path, source, number):
    data = content(30 * MIB)
    (source / "a").write_bytes(data)
    receiving = Receiving(tmp_path)
    with receiving, Proxy(receiving.port) as proxy:
        proxy.limit = 20 * MIB
        command = [*CONNPOOL, "send", "--to", proxy.place]
        command += ["--durability", "none", source / "a"]
        with running(*command, XDG_STATE_HOME=str(tmp_path / "state")) as sender:
            assert proxy.reached.wait(30)
            sender.process.send_signal(number)
            assert sender.process.wait(30) == 130
            sender.waitFor("the receiver keeps what it has of a .*; run the same command")
        proxy.go.set()
        done = connpool(*command[3:], XDG_STATE_HOME=str(tmp_path / "state"))
        assert done.returncode == 0, done.stderr
        assert held(done.stderr) > 10
        assert receiving.files() == {"a": data}


def cuts(count, total):
    chance = random.Random(7)
    return [(chance.randrange(1, total), chance.choice(["fin", "rst"])) for _ in range(count)]


def cutOnSockets(tmp_path, source, count):
    """
    Every cut is made up for by the sender itself, over the same proxy.
    """
    files = {"a": content(100), "b": content(300_000, 2), "c": content(700_000, 3)}
    total = sum(map(len, files.values()))
    receiving = Receiving(tmp_path)
    with receiving:
        for number, (at, how) in enumerate(cuts(count, total)):
            directory = source / f"{number}"
            directory.mkdir()
            for name, data in files.items():
                (directory / name).write_bytes(data)
            with Proxy(receiving.port) as proxy:
                proxy.limit = at
                command = [*CONNPOOL, "send", "--to", proxy.place]
                command += ["--durability", "none", directory]
                with running(*command, XDG_STATE_HOME=str(tmp_path / "state")) as sender:
                    assert proxy.reached.wait(30)
                    proxy.cut(how)
                    assert sender.process.wait(60) == 0, sender.output
            assert receiving.files() == {f"{number}/{name}": data for name, data in files.items()}
            shutil.rmtree(directory)
            shutil.rmtree(receiving.root / f"{number}")
        assert "Traceback" not in receiving.program.output


def test_cutsOnRealSockets(tmp_path, source):
    cutOnSockets(tmp_path, source, 3)


@pytest.mark.slow
@pytest.mark.timeout(2000)
def test_manyCutsOnRealSockets(tmp_path, source):
    cutOnSockets(tmp_path, source, 500)


def test_aResetInsideARunIsNoEnd(tmp_path):
    """
    The borrowed descriptor sees the reset; nothing is published, what was
    verified is kept.
    """
    data = content(8 * MIB)
    receiving = Receiving(tmp_path)
    with receiving:
        sender = peer.Sender(receiving.connect()).greet()
        stream, _ = sender.offer(b"f", data, MIB, resumeKey=b"k" * 32)
        sender.blocks(stream, data, MIB, [0, 1])
        # two frames, and a third that stops in the middle of a run of 4 MiB
        control = peer.pack([2 * MIB, []])
        head = peer.head(peer.DATA, control, stream, 4 * MIB)
        sender.socket.sendall(head + control + data[2 * MIB : 5 * MIB + 1000])
        assert within(lambda: receiving.written() >= 5 * MIB)
        sender.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sender.socket.close()
        receiving.program.waitFor("did not receive f")
        assert receiving.files() == {}
        again = peer.Sender(receiving.connect()).greet()
        stream, missing = again.offer(b"f", data, MIB, resumeKey=b"k" * 32)
        assert 0 not in missing
        again.blocks(stream, data, MIB, missing)
        assert again.commit(stream, data, MIB)[0] == peer.RECEIPT
        again.socket.close()
        assert hashlib.sha256(receiving.files()["f"]).digest() == hashlib.sha256(data).digest()
        assert "Traceback" not in receiving.program.output
