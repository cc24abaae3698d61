import attrs
from twisted.application.service import Application, IServiceCollection, MultiService, Service
from zope.interface import implementer

from connpool.interfaces import IStatsSource
from connpool.observe import findTransfers, findTroubles, readSources
from connpool.services.access import ListenerStats
from tests.observe.sample import Source, busy, transfer


def listener(name):
    return Source("listener", name, ListenerStats(1, 2, 3, 4))


def within(name, *children):
    service = MultiService()
    service.name = name
    for child in children:
        child.setServiceParent(service)
    return service


def labels(root):
    return [reading.name for reading in readSources([root])]


def test_labelsAreTheNamesOnTheWay():
    inbox = within("inbox", within("filerecv", listener("filerecv")))
    echo = within("echo", within(None, listener("echo"), listener("echo-tcp")))
    assert labels(within("compose", inbox, echo)) == [
        "inbox/filerecv",
        "echo",
        "echo/echo-tcp",
    ]
    assert labels(listener("alone")) == ["alone"]
    assert labels(listener(None)) == ["listener"]


def test_equalLabelsAreToldApart():
    root = within(None, *(within(None, listener("twin")) for _ in range(3)))
    assert labels(root) == ["twin", "twin#2", "twin#3"]


def test_anApplicationIsARootToo():
    application = Application("mine")
    listener("inbox").setServiceParent(IServiceCollection(application))
    assert labels(application) == ["inbox"]


@implementer(IStatsSource)
class Broken(Service):
    name = kind = "broken"

    def stats(self):
        raise ZeroDivisionError


def test_oneBrokenSourceHidesNoOther(expectFailure):
    expectFailure(ZeroDivisionError)
    assert labels(within(None, Broken(), listener("sound"))) == ["sound"]


def test_readinessNamesWhatIsNot():
    root, sources = busy()
    assert findTroubles([root])[0].endswith("not running")
    root.startService()
    assert findTroubles([root]) == []
    sources["transfer"].why = "the disk is full"
    assert findTroubles([root]) == ["inbox: the disk is full"]
    root.stopService()
    assert "the service: not running" in findTroubles([root])


def test_transfersAreLimited():
    sources = [Source("transfer", name, None, [transfer(1, "x")] * 5) for name in "abc"]
    found = findTransfers([within(None, *sources)], 7)
    assert [label for label, _ in found] == ["a"] * 5 + ["b"] * 2
    assert attrs.has(type(found[0][1]))
