"""
Keys from a chain that may be slow, or hang.
"""

import queue
import threading

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from connpool.errors import StartFailed
from connpool.services import s3keys
from connpool.services.s3keys import FRESH_SECONDS, STALE_SECONDS, ChainKeys, NoKeys, chainOf
from connpool.transfer.stores.s3.signing import Keys
from tests.helpers.waiting import bounded

ONE, TWO = Keys("AK1", "secret-1", "token-1"), Keys("AK2", "secret-2")


class Reactor(Clock):
    """
    A clock, and the results of threads that wait for it.
    """

    def __init__(self):
        super().__init__()
        self.came = queue.Queue()

    def callFromThread(self, *call):
        self.came.put(call)


class Chain:
    """
    A chain of credentials that is asked from threads.
    """

    def __init__(self, *answers):
        self.answers = list(answers)
        self.made = 0
        self.gate = threading.Event()
        self.gate.set()

    def make(self):
        self.made += 1
        return self.ask

    def ask(self):
        self.gate.wait(20)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class World:
    def __init__(self, *answers):
        self.chain = Chain(*answers)
        self.reactor = Reactor()
        self.source = ChainKeys(self.reactor, self.chain.make)

    def keys(self, refused=None):
        got = []
        self.source.keys(refused).addBoth(got.append)
        return got

    def arrive(self):
        function, *arguments = self.reactor.came.get(timeout=20)
        function(*arguments)


def test_first():
    world = World(ONE)
    assert world.source.first() == ONE
    assert world.keys() == [ONE]
    assert world.chain.made == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NoKeys("no access keys were found"), "no access keys"),
        (RuntimeError("AKIA-something-secret"), "the chain of credentials fails: RuntimeError"),
    ],
)
def test_noFirst(error, words):
    with pytest.raises(StartFailed, match=words) as caught:
        World(error).source.first()
    assert "something-secret" not in str(caught.value)


def test_chainThatHangs(monkeypatch):
    monkeypatch.setattr(s3keys, "MOST_SECONDS", 0.05)
    world = World(ONE)
    world.chain.gate.clear()
    with pytest.raises(StartFailed, match="does not answer"):
        world.source.first()
    got = world.keys()
    world.reactor.advance(0.1)
    assert got[0].check(NoKeys)
    world.chain.gate.set()
    world.arrive()
    assert world.keys() == [ONE]


def test_newOnesBeforeTheOldOnesEnd():
    """
    They are asked for in the background, while the old ones are used.
    """
    world = World(ONE, TWO)
    world.source.first()
    world.reactor.advance(FRESH_SECONDS + 1)
    assert world.keys() == [ONE]
    world.arrive()
    assert world.keys() == [TWO]
    assert world.chain.made == 1


def test_longIdle():
    """
    Keys that were not looked at for long may have ended: they are waited for.
    """
    world = World(ONE, TWO)
    world.source.first()
    world.chain.gate.clear()
    world.reactor.advance(STALE_SECONDS + 1)
    got = world.keys()
    assert got == []
    world.chain.gate.set()
    world.arrive()
    assert got == [TWO]


def test_oldOnesWhereTheChainFails():
    world = World(ONE, RuntimeError("oops"))
    world.source.first()
    world.reactor.advance(STALE_SECONDS + 1)
    got = world.keys()
    world.arrive()
    assert got == [ONE]


def test_refused():
    """
    Files and environment are read anew; several calls wait for one answer.
    """
    world = World(ONE, TWO)
    world.source.first()
    got = [world.keys(ONE), world.keys(ONE)]
    world.arrive()
    assert got == [[TWO], [TWO]]
    assert world.chain.made == 2
    # a call that was refused with the keys of before needs no new ones
    assert world.keys(ONE) == [TWO]
    assert world.chain.made == 2


@pytest_twisted.ensureDeferred
async def test_botocore(monkeypatch, tmp_path):
    """
    The standard chain, from a file of credentials.
    """
    path = tmp_path / "credentials"
    path.write_text("[default]\naws_access_key_id = AKFILE\naws_secret_access_key = from-a-file\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    source = ChainKeys(reactor)
    assert (await bounded(source.keys())) == Keys("AKFILE", "from-a-file")
    path.write_text("[default]\naws_access_key_id = AKNEW\naws_secret_access_key = rotated\n")
    assert (await bounded(source.keys(Keys("AKFILE", "from-a-file")))).access == "AKNEW"


def test_botocoreRefreshes():
    """
    Temporary keys that end soon are replaced by botocore.
    """
    import datetime as dt

    from botocore.credentials import RefreshableCredentials

    made = []

    def refresh():
        made.append(None)
        end = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=9)
        return {
            "access_key": f"AK{len(made)}",
            "secret_key": "s",
            "token": "t",
            "expiry_time": end.isoformat(),
        }

    session = type("Session", (), {})()
    credentials = RefreshableCredentials.create_from_metadata(refresh(), refresh, "test")
    session.get_credentials = lambda: credentials
    ask = chainOf(session)
    assert ask() == Keys("AK2", "s", "t")


def test_noneFound():
    session = type("Session", (), {"get_credentials": lambda self: None})()
    with pytest.raises(NoKeys, match="AWS_ACCESS_KEY_ID"):
        chainOf(session)()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("AK\nX-Injected: 1", "s", ""), "the access key has"),
        (("AK", "s \u00e9", ""), "the secret key has"),
        (("AK", "s", "to ken"), "the token key has"),
    ],
    ids=range(3),
)
def test_keysThatAreNone(keys, words):
    from botocore.credentials import Credentials

    session = type("Session", (), {"get_credentials": lambda self: Credentials(*keys)})()
    with pytest.raises(NoKeys) as caught:
        chainOf(session)()
    assert words in str(caught.value)
    assert keys[0] not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_halfOfAKey(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKHALF")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(StartFailed) as caught:
        ChainKeys(reactor).first()
    text = "Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY; set both halves"
    assert str(caught.value).startswith(text)
