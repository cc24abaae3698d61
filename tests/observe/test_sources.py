import json

import attrs
from twisted.application.service import Application, IServiceCollection, MultiService, Service
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import Clock
from zope.interface import implementer

from connpool.interfaces import IStatsSource
from connpool.observe import findTransfers, findTroubles, readSources
from connpool.observe.overview import Overview
from connpool.pool import ConnectionPool, ConnectionPoolService, KeyedConnectionPool
from connpool.services.access import ListenerStats
from connpool.testing import FakeEndpoint
from tests.observe.sample import Source, busy, poolStats, transfer


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


def cards(root):
    """
    What the page shows above the numbers, by kind.
    """
    sources = json.loads(Overview([root], Clock()).current())["sources"]
    return {each["kind"]: (each["destinations"], each["trouble"]) for each in sources}


def test_aPoolSaysWhereItConnects():
    clock = Clock()
    database = TCP4ClientEndpoint(clock, "127.0.0.1", 5432)
    secure = wrapClientTLS(optionsForClientTLS("localhost"), database)
    socket = UNIXClientEndpoint(clock, "/run/db.sock")
    unknown = FakeEndpoint(clock)
    factory = Factory()
    for endpoint, destinations in [
        (database, ["127.0.0.1:5432"]),
        ([secure, socket], ["127.0.0.1:5432", "/run/db.sock"]),
        ([unknown, database], ["127.0.0.1:5432"]),
    ]:
        service = ConnectionPoolService(ConnectionPool(clock, endpoint, factory))
        service.running = True
        assert cards(within(None, service)) == {"pool": (destinations, None)}
    keyed = KeyedConnectionPool(clock, {"a": database, "b": unknown}.get, factory)
    service = ConnectionPoolService(keyed)
    service.running = True
    assert cards(within(None, service)) == {"pool": ([], None)}
    for key in "ab":
        keyed.acquire(key).addErrback(lambda _: None)
    assert cards(within(None, service))["pool"][0] == ["127.0.0.1:5432"]
    keyed.close(0)
    clock.pump([1.0] * 3)


def test_anOutboxIsDownWhileItsPoolIs():
    outbox = Source("outbox", "outbox", ListenerStats(1, 2, 3, 4))
    pool = Source("pool", "outbox", poolStats())
    other = Source("outbox", "other", ListenerStats(1, 2, 3, 4))
    for each in (outbox, pool, other):
        each.running = True
    root = within(None, within(None, outbox), within(None, pool))
    assert cards(root)["outbox"] == ([], None)
    pool.why = "refused"
    assert cards(root)["outbox"] == ([], "refused")
    assert cards(within(None, within(None, other), within(None, pool)))["outbox"] == ([], None)
