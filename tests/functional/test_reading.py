"""
C{connpool list} and C{connpool get} as a user has them.
"""

import json
import os
import signal
import sys

import pytest

from tests.helpers.processes import CONNPOOL, connpool, finished, running, within
from tests.helpers.receiving import content, filerecv
from tests.helpers.valve import Valve

IDENTITIES = """
[users.alice]
directory = "alice"
read = true
[users.bob]
directory = "bob"
"""


@pytest.fixture
def library(tmp_path):
    """
    A receiver that alice may read: its address.
    """
    root = tmp_path / "root"
    (root / "alice/docs").mkdir(parents=True)
    (root / "alice/large").write_bytes(content(9 << 20))
    for name in ("a", "b"):
        (root / "alice/docs" / name).write_text(name)
    (root / "alice/link").symlink_to("/etc/passwd")
    (tmp_path / "passwords").write_text("alice:one\nbob:two\n")
    (tmp_path / "table").write_text(IDENTITIES)
    options = [f"--auth=file:{tmp_path}/passwords", f"--identities={tmp_path}/table"]
    options.append("--web-download")
    with filerecv(root, *options, cwd=tmp_path) as (program, place):
        yield place
        assert "Traceback" not in program.output


@pytest.fixture
def valve():
    made = Valve()
    yield made
    made.close()


def asked(command, place, *arguments, who="alice:one"):
    return connpool(command, "--from", place, *arguments, CONNPOOL_CREDENTIALS=who)


def test_listAndGet(library, tmp_path):
    done = asked("list", library)
    assert done.returncode == 0
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["docs/", "large"]
    done = asked("list", library, "--json", "--recursive")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["name"], line["size"]) for line in lines] == [
        *(("docs", None), ("large", 9 << 20), ("docs/a", 1), ("docs/b", 1)),
    ]
    out = tmp_path / "out"
    out.mkdir()
    done = asked("get", library, "large", "--output", out)
    assert done.returncode == 0
    assert "1 file, 9.0 MiB in" in done.stderr
    assert (out / "large").read_bytes() == content(9 << 20)
    done = asked("get", library, "docs", "--recursive", "--output", out, "--json")
    assert done.returncode == 0
    assert {json.loads(line)["status"] for line in done.stdout.splitlines()} == {"stored"}
    assert (out / "docs/b").read_text() == "b"
    done = asked("get", library, "large", "--output", out, "--json")
    assert json.loads(done.stdout)["status"] == "duplicate"


def test_whatCannotBeRead(library, tmp_path):
    done = asked("get", library, "nothing", "link", "../bob", "--output", tmp_path, "--json")
    assert done.returncode == 4
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["error"]["code"] for line in lines} == {"not-found"}
    said = done.stderr.splitlines()
    for name, line in zip(("nothing", "link", "../bob"), said, strict=True):
        assert line == f'connpool get: the receiver says: there is no "{name}"'
    done = asked("list", library, who="bob:two")
    assert done.returncode == 4
    assert "reading is not allowed" in done.stderr
    assert asked("list", library, who="bob:wrong").returncode == 6
    assert asked("list", "127.0.0.1:1").returncode == 7
    assert asked("get", library, "docs/a", "docs/b", "--output", tmp_path / "no").returncode == 2


def test_filesAndDirectories(library, tmp_path):
    """
    A directory where a file is asked for is told, and a file where a directory could be is taken.
    """
    out = tmp_path / "out"
    out.mkdir()
    for name, shown in (("docs", "docs"), ("/", "/")):
        done = asked("get", library, name, "--output", out)
        assert done.returncode == 4
        assert done.stderr == f'connpool get: "{shown}" is a directory; add --recursive\n'
    done = asked("get", library, "docs/a", "--recursive", "--output", out)
    assert done.returncode == 0
    assert (out / "a").read_text() == "a"
    done = asked("get", library, "nothing", "--recursive", "--output", out)
    assert (done.returncode, done.stderr) == (
        *(4, 'connpool get: the receiver says: there is no "nothing"\n'),
    )
    for how in ((), ("--recursive",)):
        done = asked("list", library, "docs/a", "nothing", *how)
        assert done.returncode == 4
        assert [line.split()[-1] for line in done.stdout.splitlines()] == ["docs/a"]
        assert done.stderr == 'connpool list: the receiver says: there is no "nothing"\n'


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("no/x", "there is no directory no; make it first"),
        ("no/", "there is no directory no; make it first"),
        ("-", "files do not go to standard output; ./- is a file of that name"),
    ],
)
def test_nowhereToPutIt(tmp_path, output, why):
    done = connpool("get", "--from", "127.0.0.1:1", "a", "--output", output, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"connpool get: --output: {why}\n")
    assert list(tmp_path.iterdir()) == []


def test_interruptedItGoesOn(library, tmp_path):
    """
    Killed while it gets a file, and again from there.
    """
    target = tmp_path / "large"
    hidden = tmp_path / ".large.connpool-part"
    command = ["get", "large", "--from", library, "--output", str(target)]
    code = (
        "import sys, time; from connpool.transfer.fetch import localfile\n"
        "write = localfile.LocalFile.write\n"
        "def slowly(self, *details):\n    write(self, *details); time.sleep(0.3)\n"
        "localfile.LocalFile.write = slowly\n"
        "from connpool.commands import main; sys.exit(main())"
    )

    with running(sys.executable, "-c", code, *command, CONNPOOL_CREDENTIALS="alice:one") as getting:
        assert within(lambda: hidden.exists() and hidden.stat().st_size > 1 << 20, 20)
        os.kill(getting.process.pid, signal.SIGKILL)
    assert not target.exists()
    done = asked("get", library, "large", "--output", target, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["came"] < 9 << 20
    assert target.read_bytes() == content(9 << 20)
    assert not hidden.exists()


def test_aLostConnectionWhileItLists(library, tmp_path, valve):
    """
    It connects again by itself, and nothing is missed or there twice.
    """
    docs = tmp_path / "root/alice/docs"
    for number in range(150):
        (docs / f"d{number}").mkdir()
        (docs / f"d{number}/f").write_text(str(number))
    valve.target = int(library.rpartition(":")[2])
    out = tmp_path / "out"
    out.mkdir()
    told = []
    for command in (["list", "docs"], ["get", "docs", "--output", str(out)]):
        valve.allow(valve.passed + 3000)
        words = [*command, "--recursive", "--json", "--from", f"127.0.0.1:{valve.port}"]
        with running(*CONNPOOL, *words, CONNPOOL_CREDENTIALS="alice:one") as program:
            valve.waitUntilHeld()
            valve.cut()
            valve.allow(float("inf"))
            assert program.process.wait(30) == 0
        assert "trying again in 0.5 s" in program.output
        lines = [line for line in program.output.splitlines() if line.startswith("{")]
        told.append([json.loads(line)["name"] for line in lines])
    assert len(told[0]) == len(set(told[0])) == 302
    assert len(told[1]) == len(set(told[1])) == 152
    for number in range(150):
        assert (out / f"docs/d{number}/f").read_text() == str(number)


def test_aReceiverThatIsGoneIsGivenUpOnce(library, tmp_path, valve):
    """
    All that is left fails then and there, each with its line of JSON, and few words.
    """
    for number in range(60):
        (tmp_path / f"root/alice/docs/{number}").write_text(str(number))
    valve.target = int(library.rpartition(":")[2])
    valve.allow(2000)
    code = (
        "import sys; from connpool.transfer.fetch import lasting; lasting._ATTEMPTS = 2\n"
        "from connpool.commands import main; sys.exit(main())"
    )
    words = ["get", "docs", "--recursive", "--json", "--from", f"127.0.0.1:{valve.port}"]
    words += ["--output", str(tmp_path)]
    with running(sys.executable, "-c", code, *words, CONNPOOL_CREDENTIALS="alice:one") as program:
        valve.waitUntilHeld()
        valve.target = None
        valve.cut()
        valve.allow(float("inf"))
        assert program.process.wait(30) == 7
    printed = program.output.splitlines()
    lines = [json.loads(line) for line in printed if line.startswith("{")]
    failed = [line["error"]["code"] for line in lines if line["status"] == "failed"]
    assert len(lines) == 62
    assert 2 < len(failed) < 62
    assert set(failed) <= {"network", "unanswered"}
    [last] = [line for line in printed if "more file" in line]
    assert last.startswith(f"connpool get: {len(failed) - 1} more files: ")
    assert sum(line.startswith("connpool get: ") for line in printed) == 3


@pytest.mark.peer("curl")
def test_curlSavesAndGoesOn(library, tmp_path):
    url = f"http://{library}"

    def curl(*arguments, who="alice:one"):
        words = ("-sS", "--path-as-is", "-u", who, "-w", "%{http_code}", *arguments)
        return finished("curl", *words, cwd=tmp_path)

    # more than a socket takes at once, and what follows it on the same connection
    saved = curl("-O", f"{url}/large", "-o", "small", f"{url}/docs/a")
    assert (saved.stdout, (tmp_path / "small").read_text()) == ("200200", "a")
    assert (tmp_path / "large").read_bytes() == content(9 << 20)
    (tmp_path / "large").write_bytes(content(9 << 20)[: 5 << 20])
    assert curl("-C", "-", "-O", f"{url}/large").stdout == "206"
    assert (tmp_path / "large").read_bytes() == content(9 << 20)
    assert curl("-o", "x", f"{url}/../root/alice/large").stdout == "404"
    assert curl("-o", "x", f"{url}/link").stdout == "404"
    assert curl("-o", "x", f"{url}/large", who="bob:two").stdout == "403"
    listed = json.loads(curl(f"{url}/docs/").stdout.removesuffix("200"))
    assert [each["name"] for each in listed["entries"]] == ["a", "b"]
