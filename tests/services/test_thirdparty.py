import pytest
from twisted.internet.task import Clock
from twisted.python import usage
from zope.interface import implementer

from connpool.errors import StartFailed
from connpool.interfaces import ITransferListenerFactory
from connpool.services import thirdparty
from connpool.services.filerecv import Options
from connpool.services.thirdparty import ChosenStore, makeListener, makeStore
from connpool.transfer.records import StoreSettings


@implementer(ITransferListenerFactory)
class Factory:
    name = "told"
    description = ""
    takes = frozenset({"keepPartials"})

    def make(self, arguments):
        if arguments == "no":
            raise ValueError("not no; write yes")
        return (self.name, arguments)


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    monkeypatch.setattr(thirdparty, "getPlugins", lambda interface: [Factory()])


@pytest.mark.parametrize(
    ("text", "arguments"), [("told", ""), ("told:", ""), ("told:a:b=c", "a:b=c")]
)
def test_madeByName(text, arguments):
    assert makeListener(text) == ("told", arguments)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tolled", "no listener is called 'tolled'; there are: told"),
        ("told:no", "told: not no; write yes"),
    ],
)
def test_mistakesAreOneLine(text, says):
    with pytest.raises(usage.UsageError) as caught:
        Options().parseOptions([f"--listener={text}"])
    assert str(caught.value) == f"--listener: {says}"


def test_severalInOrder():
    options = Options()
    options.parseOptions(["--listener=told:1", "--listener=told:2"])
    assert options["listener"] == [("told", "1"), ("told", "2")]


def test_aStoreByName():
    options = Options()
    options.parseOptions(["--store=told:x"])
    assert options["store"] == makeStore("told:x")
    assert options["store"] == ChosenStore("told", ("told", "x"), {"keepPartials"})
    options = Options()
    options.parseOptions([])
    assert options["store"] is None


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--store=tolled"], "--store: no store is called 'tolled'; there are: told"),
        (["--store=told:no"], "--store: told: not no; write yes"),
        (["--store=told", "--directory=x"], "--directory is about the local store"),
        (["--store=told", "--quota=1G"], "--quota is about the local store"),
        (["--store=told", "--keep-exec"], "--keep-exec is about the local store"),
        (["--store=told", "--file-mode=0600"], "--file-mode is about the local store"),
    ],
)
def test_mistakesAboutStores(argv, says):
    with pytest.raises(usage.UsageError, match=says):
        Options().parseOptions(argv)


def test_theStoreHeedsWhatItTakes(monkeypatch):
    opened = []

    def opens(*given):
        opened.append(given)
        raise StartFailed("that will do")

    monkeypatch.setattr(Factory, "make", lambda self, text: opens)
    options = Options()
    options.parseOptions(["--store=told", "--keep-partials=60", "--names=posix"])
    clock = Clock()
    with pytest.raises(StartFailed):
        options.make(clock).startService()
    assert opened == [(clock, StoreSettings("posix", None, 60.0))]


def test_noneInstalled(monkeypatch):
    monkeypatch.setattr(thirdparty, "getPlugins", lambda interface: [])
    with pytest.raises(ValueError, match="none is installed; see docs"):
        makeListener("told")
