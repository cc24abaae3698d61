import pytest
from twisted.python import usage
from zope.interface import implementer

from connpool.interfaces import ITransferListenerFactory
from connpool.services import listeners
from connpool.services.filerecv import Options
from connpool.services.listeners import makeListener


@implementer(ITransferListenerFactory)
class Factory:
    name = "told"
    description = ""

    def make(self, arguments):
        if arguments == "no":
            raise ValueError("not no; write yes")
        return (self.name, arguments)


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    monkeypatch.setattr(listeners, "getPlugins", lambda interface: [Factory()])


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


def test_noneInstalled(monkeypatch):
    monkeypatch.setattr(listeners, "getPlugins", lambda interface: [])
    with pytest.raises(ValueError, match="none is installed; see docs"):
        makeListener("told")
