"""
C{connpool partials}, beside a store that has its files open.
"""

import json
import os
import pwd

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from connpool.commands import partials
from connpool.errors import StartFailed
from connpool.transfer.stores import LocalStore
from tests.helpers.processes import connpool
from tests.helpers.waiting import bounded
from tests.transfer.stores.kit import BLOCK, fill, offer

SECRET = b"s" * 32


async def command(*arguments):
    done = await bounded(deferToThread(connpool, "partials", *arguments))
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (1 if done.returncode else 0), done.stderr
    return done


def listed(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def store(tmp_path):
    store = LocalStore(reactor, tmp_path)
    yield store
    pytest_twisted.blockon(bounded(store.close()))


@pytest_twisted.ensureDeferred
async def test_listed(tmp_path, store):
    assert (await command(tmp_path)).stdout == "no unfinished files\n"
    assert listed(await command("--json", tmp_path)) == []
    asked = offer("a/b.txt", size=3 * BLOCK, resumeKey=SECRET, principal="alice\n")
    partial = await bounded(store.open(asked))
    await fill(partial, b"x" * BLOCK)
    await bounded(partial.checkpoint())
    unknown = await bounded(store.open(offer("stream", size=None, resumeKey=b"n" * 32)))
    first, second = listed(await command("--json", tmp_path))
    assert first.pop("id").count("-") == 1
    age, allocated, changed = first.pop("age"), first.pop("allocated"), first.pop("changed")
    assert 0 <= age < 600
    assert allocated >= BLOCK
    assert changed > 1.7e9
    assert first == {
        "principal": "alice\n",
        "name": "a/b.txt",
        "size": 3 * BLOCK,
        "received": BLOCK,
        "active": True,
    }
    assert (second["name"], second["size"]) == ("stream", None)
    await bounded(partial.suspend())
    heading, line, other = (await command(tmp_path)).stdout.splitlines()
    assert heading.split()[:2] == ["ID", "PRINCIPAL"]
    assert r"alice\x0a" in line
    assert " no " in line
    assert line.endswith(" a/b.txt")
    assert " yes " in other
    await bounded(unknown.abort())


@pytest_twisted.ensureDeferred
async def test_removed(tmp_path, store):
    asked = offer(size=2 * BLOCK, resumeKey=SECRET)
    partial = await bounded(store.open(asked))
    await fill(partial, b"x" * BLOCK)
    [info] = listed(await command("--json", tmp_path))
    # one that is being received stays, and goes on
    done = await command("--remove", info["id"], tmp_path)
    assert done.returncode == 4
    assert "is being received now" in done.stderr
    partial.write(BLOCK, b"y" * BLOCK)
    await bounded(partial.suspend())
    done = await command("--remove", "../../etc", "--remove", info["id"], tmp_path)
    assert done.returncode == 3
    assert "no unfinished file has the id ../../etc" in done.stderr
    assert listed(await command("--json", tmp_path)) == []
    again = await bounded(store.open(asked))
    assert list(again.held) == [], "its sender begins anew"
    await bounded(again.abort())


@pytest.mark.parametrize(("name", "says"), [("none", "there is none"), ("empty", "no receiver")])
@pytest_twisted.ensureDeferred
async def test_aDirectoryOfNoReceiver(tmp_path, name, says):
    (tmp_path / "empty").mkdir()
    done = await command(tmp_path / name)
    assert done.returncode == 1
    assert says in done.stderr
    assert not os.listdir(tmp_path / "empty"), "nothing is made there"


def test_anotherUsersDirectory(tmp_path, monkeypatch):
    (tmp_path / ".connpool").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    own = pwd.getpwuid(os.getuid()).pw_name
    with pytest.raises(StartFailed, match=f"runs as {own}; try: sudo -u '{own}'"):
        partials._checkOwner(str(tmp_path))
