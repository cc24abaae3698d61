import gc
import os
import signal
import sys

import pytest
from twisted.application.service import IServiceMaker, MultiService, Service
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory as ProtocolFactory
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransportWithDisconnection
from twisted.plugin import getPlugins
from twisted.python import usage
from zope.interface import implementer
from zope.interface.verify import verifyObject

from connpool.errors import StartFailed
from connpool.interfaces import IReloadable
from connpool.plugin import DaemonMaker
from connpool.services import daemon as daemon_
from connpool.services.daemon import HURRY_SECONDS, Daemon, asDaemon, reload
from connpool.services.listening import ListeningService
from connpool.services.options import ServiceOptions
from tests.helpers.notifysocket import NotifySocket
from tests.helpers.waiting import assertNoResult, successResultOf


@pytest.fixture(autouse=True)
def _excepthook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    listening = NotifySocket(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", listening.address)
    yield listening
    listening.close()


@implementer(IReloadable)
class Reloadable(Service):
    reloads = 0
    mistake = None

    def reload(self):
        self.reloads += 1
        if self.mistake:
            raise ValueError(self.mistake)


class Reactor(MemoryReactorClock):
    def callFromThread(self, call):
        self.callLater(0, call)


def daemon(reactor, service=None, **kwargs):
    kwargs.setdefault("allowRoot", True)
    return Daemon(reactor, service or Service(), "inbox", **kwargs)


def running(reactor):
    for hook, args, kwargs in reactor.whenRunningHooks:
        hook(*args, **kwargs)


def test_tellsWhenItServesAndWhenItStops(systemd):
    reactor = Reactor()
    root = daemon(reactor)
    root.privilegedStartService()
    root.startService()
    with pytest.raises(TimeoutError):
        systemd.receive(0.01)
    running(reactor)
    assert systemd.receive() == ["READY=1", "STATUS=inbox serves"]
    assert "NOTIFY_SOCKET" not in os.environ
    root.stopService()
    assert systemd.receive()[0] == "STOPPING=1"
    assert reactor.getDelayedCalls() == []


def test_signsOfLife(systemd, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    reactor = Reactor()
    root = daemon(reactor)
    root.startService()
    running(reactor)
    assert systemd.receive()[0] == "READY=1"
    for _ in range(3):
        assert systemd.receive() == ["WATCHDOG=1"]
        reactor.advance(2)
    root.stopService()
    assert reactor.getDelayedCalls() == []


def test_stoppedBeforeItRan(systemd):
    reactor = Reactor()
    root = daemon(reactor)
    root.startService()
    root.stopService()
    running(reactor)
    assert systemd.receive()[0] == "STOPPING=1"
    with pytest.raises(TimeoutError):
        systemd.receive(0.01)


def test_hangupReloadsEverything(systemd):
    reactor = Reactor()
    inner = MultiService()
    good, bad = Reloadable(), Reloadable()
    verifyObject(IReloadable, good)
    bad.name = "bad"
    for service in (bad, good):
        service.setServiceParent(inner)
    root = daemon(reactor, inner)
    before = signal.getsignal(signal.SIGHUP)
    root.startService()
    os.kill(os.getpid(), signal.SIGHUP)
    reactor.advance(0)
    assert (good.reloads, bad.reloads) == (1, 1)
    started = systemd.receive()
    assert started[0] == "RELOADING=1"
    assert started[1].startswith("MONOTONIC_USEC=")
    assert systemd.receive() == ["READY=1", "STATUS=inbox serves"]
    bad.mistake = "no such file"
    assert list(reload(root)) == ["bad: no such file"]
    os.kill(os.getpid(), signal.SIGHUP)
    reactor.advance(0)
    systemd.receive()
    assert systemd.receive() == ["READY=1", "STATUS=not reloaded: bad: no such file"]
    assert good.reloads == 3
    root.stopService()
    assert signal.getsignal(signal.SIGHUP) is before


@pytest.mark.parametrize("logger", [None, "connpool.services.logs.jsonLines"])
def test_whatIsAskedBeforeTheStartIsDoneAtTheStart(monkeypatch, logger):
    monkeypatch.setattr(daemon_, "raiseDescriptors", lambda: None)
    reopened = []
    monkeypatch.setattr(daemon_, "reopenFiles", lambda: reopened.append(1))
    service, reactor = Reloadable(), Reactor()
    numbers = (signal.SIGHUP, signal.SIGUSR1)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        parent = Parent()
        parent["logger"] = logger
        parent.parseOptions(["inbox", "--allow-root"])
        for number in numbers:
            os.kill(os.getpid(), number)  # ended this process
        root = asDaemon(lambda options, given: service, parent.subOptions, reactor)
        # twistd's log file takes the signal only if nobody has it
        assert callable(signal.getsignal(signal.SIGUSR1)) is (logger is not None)
        os.kill(os.getpid(), signal.SIGHUP)
        assert (service.reloads, reopened) == (0, [])
        root.startService()
        for call in reactor.whenRunningHooks:
            call[0](*call[1], **call[2]) if isinstance(call, tuple) else call()
        reactor.advance(0)
        assert service.reloads == 1
        assert len(reopened) == 2
        root.stopService()
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_aSecondSignalEndsTheDrain():
    reactor = Reactor()
    listening = ListeningService(
        reactor, [], ProtocolFactory.forProtocol(Protocol), drainTimeout=60
    )
    root = daemon(reactor, listening)
    root.startService()
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    visit = listening.gate.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
    transport = StringTransportWithDisconnection()
    transport.protocol = visit
    visit.makeConnection(transport)
    stopped = root.stopService()
    os.kill(os.getpid(), signal.SIGHUP)
    reactor.advance(0)
    assert transport.connected
    assertNoResult(stopped)
    os.kill(os.getpid(), signal.SIGTERM)
    reactor.advance(0)
    assert not transport.connected
    successResultOf(stopped)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert reactor.getDelayedCalls() == []


def test_aServiceThatDoesNotEndIsLeftBehindAfterASecondSignal():
    class Endless(Service):
        def stopService(self):
            return Deferred()

    reactor = Reactor()
    root = daemon(reactor, Endless())
    root.startService()
    stopped = root.stopService()
    reactor.advance(1000)
    assertNoResult(stopped)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        reactor.advance(0)
    reactor.advance(HURRY_SECONDS)
    successResultOf(stopped)
    assert reactor.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("user", "allowed", "starts"), [(0, False, False), (0, True, True), (1, False, True)]
)
def test_notAsRootByAccident(monkeypatch, user, allowed, starts):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    root = daemon(Reactor(), allowRoot=allowed)
    if starts:
        root.startService()
        root.stopService()
    else:
        with pytest.raises(StartFailed, match=r"^inbox: runs as root; .*--allow-root "):
            root.startService()


class Options(ServiceOptions):
    pluginName = "inbox"


class Parent(usage.Options):
    subCommands = [["inbox", None, Options, ""]]


@pytest.mark.parametrize(
    ("argv", "environ", "allowed"),
    [([], "", False), (["--allow-root"], "", True), ([], "1", True), ([], "0", False)],
)
def test_onlyUnderTwistdItIsADaemon(monkeypatch, argv, environ, allowed):
    monkeypatch.setattr(daemon_, "raiseDescriptors", lambda: None)
    monkeypatch.setenv("CONNPOOL_ALLOW_ROOT", environ)
    service, reactor = Service(), Reactor()

    def make(options, given):
        assert given is reactor
        return service

    alone = Options()
    alone.parseOptions([])
    assert asDaemon(make, alone, reactor) is service
    parent = Parent()
    parent.parseOptions(["inbox", *argv])
    root = asDaemon(make, parent.subOptions, reactor)
    assert list(root) == [service]
    assert root._allowRoot is allowed


@pytest.fixture
def threshold():
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


@pytest.mark.parametrize(("before", "after"), [(700, 10_000), (20_000, 20_000), (0, 0)])
def test_aDaemonLooksLessOftenForGarbage(monkeypatch, threshold, before, after):
    """
    And what somebody else chose stays; so does all in the process of another.
    """
    monkeypatch.setattr(daemon_, "raiseDescriptors", lambda: None)
    gc.set_threshold(before)
    alone, parent = Options(), Parent()
    alone.parseOptions([])
    asDaemon(lambda *_: Service(), alone, Reactor())
    assert gc.get_threshold()[0] == before
    parent.parseOptions(["inbox"])
    asDaemon(lambda *_: Service(), parent.subOptions, Reactor())
    assert gc.get_threshold()[0] == after


def test_everyPluginOfOursIsADaemon():
    ours = [
        maker
        for maker in getPlugins(IServiceMaker)
        if getattr(maker, "module", "").startswith("connpool.")
    ]
    assert {maker.tapname for maker in ours} >= {"compose", "connpool", "filerecv", "udpecho"}
    for maker in ours:
        assert isinstance(maker, DaemonMaker), f"{maker.tapname} is no DaemonMaker"
        assert issubclass(maker.options, ServiceOptions)
        verifyObject(IServiceMaker, maker)
        assert callable(maker.makeService)
