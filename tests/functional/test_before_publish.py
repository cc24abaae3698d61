"""
C{--before-publish}: a program decides, and nothing is published that it has not let pass.
"""

import json
import os
import signal
import stat
import sys

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer_only
from zope.interface.verify import verifyObject

from connpool.errors import Held, HookRefused, StartFailed, WrongSetting
from connpool.interfaces import IFileStore, ITransferJudge
from connpool.services import FileReceiver, beforepublish
from connpool.services.beforepublish import BeforePublish
from connpool.services.thirdparty import ChosenStore
from connpool.transfer import Offer, RelativeName
from connpool.transfer.receive.judging import contentOf
from connpool.transfer.stores import MemoryStore
from tests.helpers.processes import CONNPOOL, TWISTD, connpool, finished, running, within
from tests.helpers.receiving import Receiving, content
from tests.helpers.waiting import bounded

OFFER = Offer(RelativeName.parse("d/a.txt"), "0" * 32, size=7)


def program(tmp_path, body, interpreter="/bin/sh"):
    path = tmp_path / "program"
    path.write_text(f"#!{interpreter}\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def judged(path, seconds=20.0, data=b"content"):
    """
    What a program says of some content: empty if it lets it pass.
    """
    judge = BeforePublish(reactor, path, seconds)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    try:
        await bounded(judge.beforePublish(OFFER, "192.0.2.1", lambda: contentOf(data)), 30)
    except (Held, HookRefused) as e:
        said = f"{e.code}: {e}"
    else:
        said = ""
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before
    return said


def test_itIsAJudge():
    verifyObject(ITransferJudge, BeforePublish(reactor, "/bin/true", 1.0))


@pytest_twisted.ensureDeferred
async def test_whatAProgramIsGiven(tmp_path):
    body = (
        "import json, os, stat, sys\n"
        "known = json.load(os.fdopen(3))\n"
        "data = os.read(0, 100)\n"
        "try:\n    os.write(0, b'x')\n    writes = True\nexcept OSError:\n    writes = False\n"
        "others = [int(name) for name in os.listdir('/proc/self/fd') if int(name) > 3]\n"
        "kinds = [stat.S_ISREG(os.fstat(0).st_mode)]\n"
        f"json.dump([known, data.decode(), writes, sys.argv[1:], kinds],"
        f" open({str(tmp_path / 'said')!r}, 'w'))\n"
    )
    assert await judged(program(tmp_path, body, sys.executable)) == ""
    known, data, writes, argv, kinds = json.loads((tmp_path / "said").read_text())
    assert known == {
        "transferId": "0" * 32,
        "name": "d/a.txt",
        "size": 7,
        "principal": "anonymous",
        "peer": "192.0.2.1",
        "protocol": "native",
        "modified": None,
        "executable": False,
        "sha256": None,
    }
    assert (data, writes, argv, kinds) == ("content", False, [], [True])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("exit 0", ""),
        ("cat >/dev/null; exit 0", ""),
        ("echo it is bad; exit 1", "hook-refused: a program refuses the file: it is bad"),
        ("exit 1", "hook-refused: a program refuses the file: it does not say why"),
        ("printf 'a\\033[31mb\\nc'; exit 1", "hook-refused: a program refuses the file: a\\x1b"),
        ("exit 2", "held: "),
        ("exit 127", "held: "),
        ("kill -9 $$", "held: "),
        ("kill -1 $$", "held: "),
    ],
)
@pytest_twisted.ensureDeferred
async def test_howItEndsDecides(tmp_path, body, says):
    said = await judged(program(tmp_path, body))
    assert said.startswith(says)
    assert bool(said) is bool(says)
    assert "\n" not in said
    assert "\x1b" not in said


@pytest_twisted.ensureDeferred
async def test_aReasonHasABound(tmp_path):
    body = "head -c 5000000 /dev/zero | tr '\\0' x; exit 1"
    assert len(await judged(program(tmp_path, body))) < 2000


@pytest_twisted.ensureDeferred
async def test_aProgramThatTakesTooLongHolds(tmp_path):
    assert (await judged(program(tmp_path, "exec sleep 60"), 0.3)).startswith("held")


@pytest_twisted.ensureDeferred
async def test_aProgramThatLeavesOthersBehind(tmp_path):
    """
    They keep its output open, which keeps nobody waiting.
    """
    said = await judged(
        program(tmp_path, f"sleep 30 & echo $! > {tmp_path}/left; echo bad; exit 1")
    )
    os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)
    assert said.endswith("bad")


@pytest.mark.parametrize("body", ["none", "interpreter", "text"])
@pytest_twisted.ensureDeferred
async def test_aProgramThatCannotBeRunHolds(tmp_path, body):
    """
    Although the system says 1 for it, too.
    """
    path = program(tmp_path, "exit 0", "/nonexistent/sh")
    if body == "none":
        os.unlink(path)
    if body == "text":
        (tmp_path / "program").write_bytes(b"\x7fELF nonsense")
    assert (await judged(path)).startswith("held")


@pytest_twisted.ensureDeferred
async def test_aStopHolds(tmp_path):
    judge = BeforePublish(reactor, program(tmp_path, "exec sleep 60"), 60.0)
    d = judge.beforePublish(OFFER, "x", lambda: contentOf(b""))
    await bounded(Deferred.fromCoroutine(judge.stop()))
    with pytest.raises(Held):
        await bounded(d)
    with pytest.raises(Held):
        await bounded(judge.beforePublish(OFFER, "x", lambda: contentOf(b"")))


@pytest_twisted.ensureDeferred
async def test_aStopAfterItHasSpoken(tmp_path, monkeypatch):
    """
    What it leaves behind keeps its output open; what it said counts.
    """
    body = f"sleep 30 & echo $! > {tmp_path}/left; echo bad; exit 1"
    judge = BeforePublish(reactor, program(tmp_path, body), 60.0)
    exited = Deferred()

    class Watched(beforepublish._Judgement):
        def processExited(self, reason):
            super().processExited(reason)
            exited.callback(None)

    monkeypatch.setattr(beforepublish, "_Judgement", Watched)
    d = judge.beforePublish(OFFER, "x", lambda: contentOf(b""))
    await bounded(exited)
    await bounded(Deferred.fromCoroutine(judge.stop()))
    os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)
    with pytest.raises(HookRefused, match="bad"):
        await bounded(d)


@pytest_twisted.ensureDeferred
async def test_aStopBeforeItBegins(tmp_path):
    """
    No program outlives a receiver that stopped while it got the content ready.
    """
    judge = BeforePublish(reactor, program(tmp_path, f"touch {tmp_path}/ran"), 60.0)
    content = Deferred()
    d = judge.beforePublish(OFFER, "x", lambda: content)
    await bounded(Deferred.fromCoroutine(judge.stop()))
    content.callback(os.open("/dev/null", os.O_RDONLY))
    with pytest.raises(Held):
        await bounded(d)
    assert not (tmp_path / "ran").exists()


# -- a receiver ---------------------------------------------------------------------------

ASKS = """
import os, sys, time, json
known = json.load(os.fdopen(3))
open({asked!r}, "a").write(known["name"] + "\\n")
while not os.path.exists({go!r}):
    time.sleep(0.05)
sys.exit(int(open({go!r}).read()))
"""


@pytest.mark.parametrize("size", [100, 5 << 20], ids=["small", "large"])
def test_verifiedAndNotPublishedSurvivesADeath(tmp_path, size):
    asked, go = tmp_path / "asked", tmp_path / "go"
    path = program(tmp_path, ASKS.format(asked=str(asked), go=str(go)), sys.executable)
    source = tmp_path / "source"
    source.write_bytes(content(size))
    receiving = Receiving(tmp_path, f"--before-publish={path}")
    receiving.__enter__()
    command = [*CONNPOOL, "send", "--to", receiving.place, "--durability", "none", str(source)]
    with running(*command, XDG_STATE_HOME=str(tmp_path / "state")) as sender:
        assert within(asked.exists, 30)
        assert receiving.files() == {}
        receiving.kill()
        os.kill(sender.process.pid, signal.SIGKILL)
    go.write_text("0")
    with receiving:
        done = receiving.send("--json", source)
        assert done.returncode == 0
        assert receiving.files() == {"source": content(size)}
        if size > 1 << 20:
            assert "5.0 MiB of it held before" in done.stderr
    assert len(asked.read_text().splitlines()) == 2


def test_aSenderIsTold(tmp_path):
    path = program(tmp_path, "grep -q virus && { echo it has a virus; exit 1; }; exit 0")
    (tmp_path / "good").write_bytes(b"fine")
    (tmp_path / "bad").write_bytes(b"a virus")
    (tmp_path / "badlarge").write_bytes(content(1 << 20) + b"\nvirus\n")
    with Receiving(tmp_path, f"--before-publish={path}") as receiving:
        files = [tmp_path / name for name in ("good", "bad", "badlarge")]
        done = receiving.send(*files, "--json")
        assert done.returncode == 4
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        codes = {line["name"]: line["error"] and line["error"]["code"] for line in lines}
        assert codes == {"good": None, "bad": "hook-refused", "badlarge": "hook-refused"}
        assert "a program refuses the file: it has a virus" in done.stderr
        place = receiving.place
        done = connpool("send", "--to", place, "--protocol", "classic", tmp_path / "bad")
        assert done.returncode == 7
        assert set(receiving.files()) == {"good"}


@pytest.mark.parametrize("size", [100, 5 << 20], ids=["small", "large"])
def test_aStopWhileAFileIsJudged(tmp_path, size):
    """
    The program is ended, and the file is neither published nor sent again.
    """
    path = program(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 120")
    source = tmp_path / "source"
    source.write_bytes(content(size))
    receiving = Receiving(tmp_path, f"--before-publish={path}", "--drain-timeout=0.5")
    command = [*CONNPOOL, "send", "--to", receiving.place, "--durability", "none", str(source)]
    with receiving, running(*command, XDG_STATE_HOME=str(tmp_path / "state")) as sender:
        assert within(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 30)
        os.kill(sender.process.pid, signal.SIGKILL)
        assert receiving.program.stop() in {0, -signal.SIGTERM}
        assert "Traceback" not in receiving.program.output
        pid = (tmp_path / "pid").read_text().strip()
        assert within(lambda: not os.path.exists(f"/proc/{pid}"))
    program(tmp_path, "exit 0")
    with receiving:
        done = receiving.send(source)
        assert done.returncode == 0
        assert ("held before" in done.stderr) is (size > 1 << 20)
        assert receiving.files() == {"source": content(size)}


def test_startErrors(tmp_path):
    words = ["filerecv", "--allow-root", f"--directory={tmp_path}"]
    ended = finished(*TWISTD, "-n", "--pidfile=", *words, "--before-publish=none", cwd=tmp_path)
    assert ended.returncode == 1
    assert "is not a program that can be run" in ended.stderr + ended.stdout


@implementer_only(IFileStore)
class Sealed(MemoryStore):
    """
    A store that shows nothing before it is published, as an S3 engine.
    """


@pytest.mark.parametrize("listeners", [False, True])
def test_aStoreThatShowsNothingTakesNoJudges(tmp_path, listeners):
    path = program(tmp_path, "exit 0")
    judge = BeforePublish(reactor, path, 1.0)
    chosen = {"listeners": [judge]} if listeners else {"beforePublish": path}
    receiver = FileReceiver(Clock(), store=lambda *_: Sealed(), **chosen)
    with pytest.raises(StartFailed, match="--before-publish"):
        receiver.startService()


@pytest.mark.parametrize("listeners", [False, True])
def test_aPluginSaysBeforeItIsOpened(tmp_path, listeners):
    path = program(tmp_path, "exit 0")
    judge = BeforePublish(reactor, path, 1.0)
    chosen = {"listeners": [judge]} if listeners else {"beforePublish": path}
    opened = []
    store = ChosenStore("sealed", lambda *_: opened.append(1), frozenset({"quota"}))
    with pytest.raises(WrongSetting, match="the store sealed cannot show a file"):
        FileReceiver(Clock(), store=store, **chosen)
    assert not opened
    able = ChosenStore("able", lambda *_: MemoryStore(), frozenset({"beforePublish"}))
    FileReceiver(Clock(), store=able, **chosen)


def test_anS3StoreIsOneLineBeforeItsEngineIsAsked(tmp_path):
    path = program(tmp_path, "exit 0")
    # nobody is there to answer
    store = "--store=s3:bucket=files,endpoint=http://127.0.0.1:1"
    ended = finished(*TWISTD, "-n", "filerecv", store, f"--before-publish={path}", cwd=tmp_path)
    assert ended.returncode == 1
    said = ended.stderr.splitlines()
    assert "the store s3 cannot show a file before it is published" in said[-1]
    assert "127.0.0.1:1" not in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
