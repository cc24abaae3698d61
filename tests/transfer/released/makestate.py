"""
Make C{state.tar.xz}: what a released version leaves on disk.

Run once for each version, after C{make released}, from the top of the checkout::

    .venv/bin/python -m tests.transfer.released.makestate 0.1.0

The programs of that version write all of it; L{tests.transfer.peer}, which knows
nothing of C{connpool}, is the sender, so that every key is known.  In the archive:

  - C{root}: a receiver's directory with receipts, C{--on-received} in the
    middle of its work, partials after a clean and an unclean end, and commits
    that ended before and after the file got its name.
  - C{sender}: a sender's secrets with an unfinished run, and C{keys.json}.
  - C{outbox}, C{done}, C{inbox}: the folder of C{filesend} with a queue, poison,
    a file that failed once and a file that it was about to move; where it moves
    files; and the directory of its receiver.
"""

from __future__ import annotations

import hashlib
import io
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.helpers.processes import within
from tests.helpers.released import RELEASED, Programs, receiving, released
from tests.transfer import peer

#: The directories in the archive.
PARTS = ("root", "sender", "outbox", "done", "inbox")
#: Bytes of a block.
BLOCK = 4096
#: Blocks of a large file.
BLOCKS = 8
#: Blocks of it that the receiver had when the transfer ended.
HELD = (0, 1, 2, 5)
#: To whom the sender's secrets were used.
DESTINATION = "receiver.example:8640"
#: What is refused by every receiver.
REFUSED = "re\\fused"


def keyOf(name: str, kind: str = "key") -> bytes:
    """
    The idempotence key or the resume key that a file was sent under.
    """
    return hashlib.sha256(f"{kind} of {name}".encode()).digest()


def small(name: str) -> bytes:
    """
    The content of a file that goes in one piece.
    """
    return f"content of {name}\n".encode()


def large(name: str) -> bytes:
    """
    The content of a file that goes in blocks, which all differ.
    """
    return b"".join(
        f"{name} {number}\n".encode().ljust(BLOCK, b".") for number in range(BLOCKS - 1)
    ) + small(name)


#: Ends C{twistd} where a file is about to get its name, or has got it.
_AT_LINK = """
import importlib, os
for name in ("connpool.transfer.syscalls", "connpool.transfer.stores.syscalls"):
    try:
        syscalls = importlib.import_module(name)
    except ImportError:
        continue
def link(source, target, **more):
    if target == "unnamed":
        os._exit(9)
    os.link(source, target, **more)
    if target == "named":
        os._exit(9)
syscalls.Syscalls.link = staticmethod(link)
from twisted.scripts.twistd import run
run()
"""

#: Ends C{twistd} where a file that was sent is about to be moved.
_AT_MOVE = """
import importlib, os
for name in ("connpool.transfer.send.outboxfolder", "connpool.transfer.outboxfolder"):
    try:
        folder = importlib.import_module(name)
    except ImportError:
        continue
folder._moveFree = lambda source, target: os._exit(9)
from twisted.scripts.twistd import run
run()
"""

#: Prints the keys of a file that there never was, in a run that does not end.
_KEYS = """
import importlib, json, pathlib, sys, types
for name in ("connpool.transfer.send.keys", "connpool.transfer.keys"):
    try:
        keys = importlib.import_module(name)
    except ImportError:
        continue
status = types.SimpleNamespace(
    st_dev=1, st_ino=2, st_size=3, st_mtime_ns=4_000_000_000, st_ctime_ns=5_000_000_000
)
run = keys.SenderKeys(pathlib.Path(sys.argv[1])).begin(sys.argv[2])
arguments = b"/src/a", status, b"src/a"
print(json.dumps({"resumeKey": run.resumeKey(*arguments).hex(), "key": run.key(*arguments).hex()}))
"""


def offered(sender: peer.Sender, name: str) -> int:
    """
    Begin a large file.
    """
    stream, missing = sender.offer(
        name.encode(), large(name), BLOCK, keyOf(name), keyOf(name, "resume key")
    )
    assert missing == list(range(BLOCKS))
    return stream


def sent(connection: socket.socket, name: str) -> None:
    """
    Send a large file.
    """
    sender = peer.Sender(connection).greet()
    stream = offered(sender, name)
    sender.blocks(stream, large(name), BLOCK, range(BLOCKS))
    assert sender.commit(stream, large(name), BLOCK)[0] == peer.RECEIPT


def put(connection: socket.socket, name: str) -> None:
    """
    Send a small file.
    """
    sender = peer.Sender(connection).greet()
    stream = sender.put(name.encode(), small(name), keyOf(name))
    assert sender.answers([stream])[stream][0] == peer.ACK


@contextmanager
def dying(programs: Programs, body: str):
    """
    The programs of a version, with a C{twistd} that dies where C{body} says.
    """
    python = str(Path(programs.twistd[0]).parent / "python")
    yield Programs(programs.version, programs.connpool, [python, "-c", body], programs.environment)


def makeRoot(programs: Programs, work: Path) -> None:
    """
    The receiver's directory.
    """
    root = work / "root"
    told = work / "told"
    program = work / "program"
    program.write_text(f"#!/bin/sh\ncat >> '{told}'; echo >> '{told}'\n")
    program.chmod(0o755)
    with receiving(programs, root, "--on-received", program) as receiver:
        put(receiver.connect(), "put/told")
        sent(receiver.connect(), "offer/told")
        assert within(lambda: told.exists() and told.read_text().count("}") == 2)
        time.sleep(0.5)  # what it has told it writes down
        receiver.program.stop()
    with receiving(programs, root) as receiver:
        put(receiver.connect(), "put/untold")
        sent(receiver.connect(), "offer/untold")
        suspended = receiver.connect()
        sender = peer.Sender(suspended).greet()
        stream = offered(sender, "partial/suspended")
        sender.blocks(stream, large("partial/suspended"), BLOCK, HELD)
        sender.ping()
        suspended.close()
        receiver.program.waitFor("did not receive partial/suspended")
        receiver.program.stop()
    with receiving(programs, root) as receiver:
        sender = peer.Sender(receiver.connect()).greet()
        stream = offered(sender, "partial/killed")
        sender.blocks(stream, large("partial/killed"), BLOCK, HELD)
        sender.ping()
        time.sleep(4)  # until a checkpoint was due
        receiver.program.process.send_signal(signal.SIGKILL)
        receiver.program.process.wait(10)
    for name in ("unnamed", "named"):
        with dying(programs, _AT_LINK) as mortal, receiving(mortal, root) as receiver:
            with suppress(EOFError, ConnectionError):
                sent(receiver.connect(), f"commit/{name}")
            assert receiver.program.process.wait(20) == 9


def makeSender(programs: Programs, work: Path) -> None:
    """
    The sender's secrets.
    """
    sender = work / "sender"
    python = Path(programs.twistd[0]).parent / "python"
    keys = subprocess.run(
        [python, "-c", _KEYS, sender, DESTINATION],
        check=True,
        capture_output=True,
        cwd=work,
        env=programs.variables(work),
    ).stdout
    (sender / "keys.json").write_bytes(keys)


def makeOutbox(programs: Programs, work: Path) -> None:
    """
    The folder of C{filesend}.
    """
    outbox, done = work / "outbox", work / "done"
    outbox.mkdir()
    done.mkdir()

    def sending(own: Programs, attempts: int, address: str):
        options = ["--settle=0.05", "--interval=0.05", f"--attempts={attempts}", f"--to={address}"]
        return own.service(
            "filesend", f"--directory={outbox}", f"--move-to={done}", *options, cwd=work
        )

    with receiving(programs, work / "inbox") as receiver:
        (outbox / "sent").write_bytes(small("sent"))
        (outbox / "poi\\son").write_bytes(small("poison"))
        with sending(programs, 1, receiver.address) as filesend:
            filesend.waitFor("filesend sent sent")
            filesend.waitFor("filesend set")
            filesend.stop()
        (outbox / REFUSED).write_bytes(small("refused"))
        with sending(programs, 5, receiver.address) as filesend:
            records = list(outbox.glob(".connpool-outbox/record.json"))
            assert within(lambda: any("fused" in path.read_text() for path in records))
            filesend.stop()
        (outbox / "taken").write_bytes(small("taken"))
        with (
            dying(programs, _AT_MOVE) as mortal,
            sending(mortal, 50, receiver.address) as filesend,
        ):
            assert filesend.process.wait(30) == 9
        receiver.program.stop()
    (outbox / "waiting/there").mkdir(parents=True)
    (outbox / "waiting/small").write_bytes(small("waiting/small"))
    (outbox / "waiting/there/large").write_bytes(large("waiting/there/large") * 20)


def archive(work: Path, target: Path) -> None:
    """
    Pack everything, with nothing in it that says where and by whom it was made.
    """

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=9) as tar:
        for part in PARTS:
            for path in (work / part).rglob("*"):
                said = path.is_file() and str(work).encode() in path.read_bytes()
                assert not said, f"{path} says where it was made"
            tar.add(work / part, part, filter=anonymous)
    target.write_bytes(packed.getvalue())


def main(version: str) -> None:
    """
    Make the archive of one version.
    """
    programs = released(version)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        makeRoot(programs, work)
        makeSender(programs, work)
        makeOutbox(programs, work)
        archive(work, RELEASED / version / "state.tar.xz")


if __name__ == "__main__":
    main(sys.argv[1])
