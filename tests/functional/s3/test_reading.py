"""
Reading from a real engine: the contract of readable stores, and C{connpool list}, C{connpool get}
and C{curl} as users have them.
"""

import json
import os
import signal
import sys

import pytest
import pytest_twisted

from connpool.errors import NotFound
from connpool.transfer.stores.s3.calls import Delete, Put
from examples.s3.engines import seaweedfs
from tests.functional.s3.test_contract import EngineUnderTest
from tests.helpers.processes import connpool, finished, running, twistd, within
from tests.helpers.receiving import content
from tests.transfer.stores import test_reading
from tests.transfer.stores.test_reading import listed, name, put, readable

pytestmark = [pytest.mark.slow, pytest.mark.peer("weed"), pytest.mark.timeout(300)]

__all__ = ["readable"]

globals().update(
    (called, value)
    for called, value in vars(test_reading).items()
    if called.startswith("test_") and "local" not in value.__code__.co_varnames
)


@pytest.fixture
def tested(weed, prefix, tmp_path):
    case = EngineUnderTest(weed, prefix, tmp_path)
    case.listsTimes = False
    yield case
    pytest_twisted.blockon(test_reading.bounded(case.store.close()))


@pytest_twisted.ensureDeferred
async def test_objectsOfOthers(readable, prefix):
    """
    What others put is listed and read as any file, if it has a name that a file can have.
    """

    async def stored():
        for key in ("theirs", "d/theirs", "odd//x", "d/.connpool-x", "d/e/"):
            await Put(f"{prefix}{key}", b"" if key[-1] == "/" else b"theirs")

    await put(readable, "d/ours")
    await readable.run(stored())
    top = await listed(readable)
    assert [each.name for each in top.entries if each.name != "odd"] == ["d", "theirs"]
    below = [each.name for each in (await listed(readable, "d")).entries]
    assert [each for each in below if each != "e"] == ["ours", "theirs"]
    found = await test_reading.bounded(readable.read(name("theirs"), 0, 100))
    assert found.data == b"theirs"
    assert found.modified > test_reading.MODIFIED
    for path in ("x\\..\\theirs", "d\\theirs", "d/e", "/".join(["k" * 250] * 5)):
        with pytest.raises(NotFound):
            await test_reading.bounded(readable.read(name(path), 0, 1))


@pytest_twisted.ensureDeferred
async def test_manyNames(readable, prefix):
    """
    More than a page of the engine, the names long ones.
    """
    names = [f"{number:03}" + "é" * 120 for number in range(600)]

    async def stored():
        for each in names:
            await Put(f"{prefix}many/{each}", b"x")

    await readable.run(stored())
    page = await listed(readable, "many")
    assert [each.name for each in page.entries] == names
    assert not page.more


@pytest_twisted.ensureDeferred
async def test_replacedBetweenTwoParts(readable, prefix):
    async def stored(body):
        await Put(f"{prefix}f", body)

    await readable.run(stored(b"a" * 100))
    first = await test_reading.bounded(readable.read(name("f"), 0, 50))
    await readable.run(stored(b"b" * 100))
    second = await test_reading.bounded(readable.read(name("f"), 50, 100))
    assert first.version != second.version

    async def removed():
        await Delete(f"{prefix}f")

    await readable.run(removed())
    with pytest.raises(NotFound):
        await test_reading.bounded(readable.read(name("f"), 0, 1))


# -- as users have it ------------------------------------------------------------------------

IDENTITIES = """
[users.alice]
directory = "alice"
read = true
[users.bob]
directory = "bob"
"""
LARGE = content(19 << 20)


@pytest.fixture
def library(weed, tmp_path, prefix):
    """
    Two receivers of one engine that alice may read; each was sent something.
    """
    (tmp_path / "passwords").write_text("alice:one\nbob:two\n")
    (tmp_path / "table").write_text(IDENTITIES)
    options = [f"--auth=file:{tmp_path}/passwords", f"--identities={tmp_path}/table"]
    source = tmp_path / "source"
    (source / "docs").mkdir(parents=True)
    (source / "large").write_bytes(LARGE)
    for each in ("a", "b"):
        (source / "docs" / each).write_text(each)
    options.append("--web-download")
    store = f"s3:bucket=files,endpoint={weed.url},prefix={prefix.rstrip('/')},spool={tmp_path}"
    command = ["filerecv", f"--store={store}", "--listen=tcp:0:interface=127.0.0.1", *options]
    with (
        twistd(*command, cwd=tmp_path, **weed.environment) as one,
        twistd(*command, cwd=tmp_path, **weed.environment) as other,
    ):
        both = (one, other)
        places = [each.waitFor(r"listens on (127.0.0.1:\d+)")[1] for each in both]
        for place, what in zip(places, ("large", "docs"), strict=True):
            sent = connpool(
                *("send", "--to", place, source / what), CONNPOOL_CREDENTIALS="alice:one"
            )
            assert sent.returncode == 0, sent.stderr
        yield places
        for each in both:
            assert "Traceback" not in each.output


def asked(command, place, *arguments, who="alice:one"):
    return connpool(command, "--from", place, *arguments, CONNPOOL_CREDENTIALS=who)


def test_listAndGet(library, tmp_path):
    for place in library:
        done = asked("list", place, "--json", "--recursive")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(line["name"], line["size"]) for line in lines] == [
            *(("docs", None), ("large", len(LARGE)), ("docs/a", 1), ("docs/b", 1)),
        ]
    shown = asked("list", library[0]).stdout.splitlines()
    assert shown[0].split() == ["-", "-", "docs/"]
    out = tmp_path / "out"
    out.mkdir()
    for words in (["large"], ["docs", "--recursive"]):
        done = asked("get", library[1], *words, "--output", out, "--json")
        assert done.returncode == 0, done.stderr
    assert (out / "large").read_bytes() == LARGE
    assert (out / "docs/b").read_text() == "b"
    there = (tmp_path / "source/large").stat()
    assert (out / "large").stat().st_mtime_ns == there.st_mtime_ns
    done = asked("get", library[0], "large", "--output", out, "--json")
    assert json.loads(done.stdout)["status"] == "duplicate"
    done = asked("get", library[0], "nothing", "../bob", "--output", out)
    assert done.returncode == 4
    assert asked("list", library[0], who="bob:two").returncode == 4


def test_interruptedItGoesOnElsewhere(library, tmp_path):
    """
    Killed while it gets a file from one receiver, and again from there by the other.
    """
    target, hidden = tmp_path / "large", tmp_path / ".large.connpool-part"
    command = ["get", "large", "--from", library[0], "--output", str(target)]
    code = (
        "import sys, time; from connpool.transfer.fetch import localfile\n"
        "write = localfile.LocalFile.write\n"
        "def slowly(self, *details):\n    write(self, *details); time.sleep(0.3)\n"
        "localfile.LocalFile.write = slowly\n"
        "from connpool.commands import main; sys.exit(main())"
    )
    with running(sys.executable, "-c", code, *command, CONNPOOL_CREDENTIALS="alice:one") as getting:
        assert within(lambda: hidden.exists() and hidden.stat().st_size > 1 << 20, 40)
        os.kill(getting.process.pid, signal.SIGKILL)
    assert not target.exists()
    done = asked("get", library[1], "large", "--output", target, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["came"] < len(LARGE)
    assert target.read_bytes() == LARGE
    assert not hidden.exists()


@pytest.mark.peer("curl")
def test_curlSavesAndGoesOn(library, tmp_path):
    def curl(*arguments, who="alice:one"):
        words = ("-sS", "--path-as-is", "-u", who, "-w", "%{http_code}")
        return finished("curl", *words, *arguments, cwd=tmp_path)

    url = f"http://{library[0]}"
    assert curl("-O", f"{url}/large").stdout == "200"
    assert (tmp_path / "large").read_bytes() == LARGE
    (tmp_path / "large").write_bytes(LARGE[: 5 << 20])
    assert curl("-C", "-", "-O", f"{url}/large").stdout == "206"
    assert (tmp_path / "large").read_bytes() == LARGE
    assert curl("-o", "x", f"{url}/../bob/x").stdout == "404"
    assert curl("-o", "x", f"{url}/large", who="bob:two").stdout == "403"
    shown = json.loads(curl(f"{url}/docs/").stdout.removesuffix("200"))
    assert [each["name"] for each in shown["entries"]] == ["a", "b"]


def test_aDeadEngineIsToldSoon(tmp_path):
    """
    Whoever reads is told in a line that names the engine, long before a transfer gives up; and
    reads as soon as it is back.
    """
    (tmp_path / "passwords").write_text("alice:one\n")
    (tmp_path / "table").write_text(IDENTITIES)
    with seaweedfs(tmp_path / "engine") as engine:
        store = f"s3:bucket=files,endpoint={engine.url},spool={tmp_path}"
        options = [f"--auth=file:{tmp_path}/passwords", f"--identities={tmp_path}/table"]
        options += ["--listen=tcp:0:interface=127.0.0.1", f"--store={store}"]
        with twistd("filerecv", *options, cwd=tmp_path, **engine.environment) as receiver:
            place = receiver.waitFor(r"listens on (127.0.0.1:\d+)")[1]
            assert asked("list", place).returncode == 0
            engine.kill()
            done = asked("list", place)
            assert done.returncode == 7, done.stderr
            [line] = done.stderr.splitlines()
            assert f"the engine at {engine.url} fails since" in line
            assert line.endswith("; try again later")
            engine.start()
            assert within(lambda: asked("list", place).returncode == 0, 60)
            assert "Traceback" not in receiver.output
