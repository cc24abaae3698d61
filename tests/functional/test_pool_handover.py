"""
No byte of one lease reaches the next, over real sockets: in all the ways in which a
lease ends inside the read that brought its answer.
"""

import pytest
import pytest_twisted
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred, DeferredList, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineReceiver
from zope.interface import implementer

from connpool.interfaces import IPoolable
from connpool.pool import ConnectionPool, KeyedConnectionPool, PooledEndpoint
from connpool.services import poolrelay
from tests.helpers.protocols import Trusting
from tests.helpers.waiting import bounded, until
from tests.pool.servers import Server, makeAuthority

QUESTIONS = [b"first", b"second", b"third", b"fourth"]


class Asker(LineReceiver):
    """
    Asks one question, takes one line for its answer.
    """

    delimiter = b"\n"
    MAX_LENGTH = 100_000
    waiting = None

    def ask(self, question):
        self.waiting = Deferred()
        self.sendLine(question)
        return self.waiting

    def lineReceived(self, line):
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.callback(line)

    def connectionLost(self, reason):
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.errback(reason)


@implementer(IPoolable)
class TrustingAsker(Trusting, Asker):
    """
    Asks again on a connection without a look at it.
    """


@implementer(IPoolable)
class Resetting(TrustingAsker):
    """
    Is reset by a question of its own, whose answer is one too many, too.
    """

    def reset(self):
        return self.ask(b"first reset")


class Chatty(LineReceiver):
    """
    A server that adds a line to the answer of the first question: in the same
    segment, or in a second one that follows at once.
    """

    delimiter = b"\n"
    split = False

    def connectionMade(self):
        self.factory.live.append(self)
        self.factory.total += 1

    def connectionLost(self, reason):
        self.factory.live.remove(self)

    def lineReceived(self, line):
        notice = b"NOTICE\n" if line.startswith(b"first") else b""
        if self.split:
            self.transport.write(b"re:" + line + b"\n")
            if notice:
                reactor.callLater(0, self.transport.write, notice)
        else:
            self.transport.write(b"re:" + line + b"\n" + notice)


class Splitting(Chatty):
    split = True


class Long(Chatty):
    """
    Adds so much that TLS delivers it in several pieces.
    """

    def lineReceived(self, line):
        notice = b"N" * 40_000 + b"\n" if line.startswith(b"first") else b""
        self.transport.write(b"re:" + line + b"\n" + notice)


class Closing(LineReceiver):
    """
    A server that closes after each answer, as HTTP/1.0 does.
    """

    delimiter = b"\n"

    def connectionMade(self):
        self.factory.live.append(self)
        self.factory.total += 1
        self.asked = 0

    def connectionLost(self, reason):
        self.factory.live.remove(self)

    def lineReceived(self, line):
        self.factory.got = [*getattr(self.factory, "got", []), line]
        self.transport.write(b"re:" + line + b"\n")
        self.transport.loseConnection()


def viaLease(pool, question, got):
    async def use():
        async with pool.lease() as protocol:
            got[question] = await protocol.ask(question)

    return ensureDeferred(use())


def viaRun(pool, question, got):
    return pool.run(lambda protocol: protocol.ask(question)).addCallback(
        lambda answer: got.__setitem__(question, answer)
    )


def viaCallback(pool, question, got):
    def use(lease):
        def answered(answer):
            got[question] = answer
            lease.release()

        return lease.protocol.ask(question).addCallback(answered)

    return pool.acquire().addCallback(use)


def viaTry(pool, question, got):
    """
    The next user takes it inside the callback of the one before, if it is there.
    """
    lease = pool.tryAcquire()
    if lease is None:
        return viaCallback(pool, question, got)

    def answered(answer):
        got[question] = answer
        lease.release()

    return lease.protocol.ask(question).addCallback(answered)


class OneKey:
    """
    A key of a keyed pool, as a pool.
    """

    def __init__(self, keyed):
        self.keyed = keyed

    def lease(self):
        return self.keyed.lease("key")

    def run(self, f):
        return self.keyed.run("key", f)

    def acquire(self):
        return self.keyed.acquire("key")

    def tryAcquire(self):
        return self.keyed.tryAcquire("key")

    def close(self, timeout=None):
        return self.keyed.close(timeout)


def makePool(kind, endpoint, protocol, **limits):
    factory = Factory.forProtocol(protocol)
    factory.noisy = False
    if kind == "keyed":
        return OneKey(KeyedConnectionPool(reactor, lambda key: endpoint, factory, **limits))
    return ConnectionPool(reactor, endpoint, factory, **limits)


@pytest.mark.parametrize("server", [Chatty, Long])
@pytest.mark.parametrize("when", ["prepare", "lease"])
@pytest_twisted.inlineCallbacks
def test_aSurplusAnswerReachesNobodyWhereTLSBeganLater(server, when):
    yield bounded(ensureDeferred(upgraded(server, when)), 15)


async def upgraded(server, when):
    """
    The connection is plain when it is dialled, as with SMTP, IMAP and PostgreSQL.
    """
    authority = makeAuthority()
    served = await Server(protocol=server).start(authority)
    options = ssl.optionsForClientTLS(
        "localhost",
        trustRoot=ssl.trustRootFromCertificates(
            [ssl.Certificate.loadPEM(authority.cert_pem.bytes())]
        ),
    )

    def upgrade(protocol):
        protocol.transport.startTLS(options)
        return protocol.ask(b"hello")

    prepare = upgrade if when == "prepare" else None
    pool = makePool("plain", served.endpoint(), Asker, maxSize=1, prepare=prepare)
    for number in range(6):
        got = {}
        if when == "lease" and (not number or not served.live):
            assert await pool.run(upgrade) == b"re:hello"
            assert await pool.run(lambda protocol: protocol.ask(b"again")) == b"re:again"
        ways = [viaCallback(pool, question, got) for question in QUESTIONS[:2]]
        await DeferredList(ways, consumeErrors=True)
        wrong = {each: answer for each, answer in got.items() if answer != b"re:" + each}
        assert not wrong
        if when == "lease":
            break  # the next connection is a plain one
    lease = await pool.acquire()
    if when == "prepare":  # it is a TLS one
        lease.protocol.transport.loseConnection()
        lease.release()
        assert pool.stats().closing == 1
    else:
        lease.discard()
    await pool.close(0)
    await served.stop()


@pytest.mark.parametrize("server", [Chatty, Splitting, Long])
@pytest.mark.parametrize("protocol", [Asker, TrustingAsker, Resetting])
@pytest.mark.parametrize("way", [viaLease, viaRun, viaCallback, viaTry])
@pytest.mark.parametrize("kind", ["plain", "keyed", "TLS"])
@pytest_twisted.inlineCallbacks
def test_aSurplusAnswerReachesNobody(kind, way, protocol, server):
    yield bounded(ensureDeferred(surplus(kind, way, protocol, server)), 15)


async def surplus(kind, way, protocol, server):
    if kind == "TLS" and server is Splitting:
        return  # TLS sends a second write in a later turn: that is later, not queued
    authority = makeAuthority() if kind == "TLS" else None
    served = await Server(protocol=server).start(authority)
    pool = makePool(kind, served.endpoint(authority), protocol, maxSize=1)
    for _ in range(3):
        got = {}
        await DeferredList([way(pool, question, got) for question in QUESTIONS], consumeErrors=True)
        wrong = {each: answer for each, answer in got.items() if answer != b"re:" + each}
        assert not wrong
        if server is Chatty and protocol is not Resetting:
            assert len(got) == len(QUESTIONS)  # and nobody paid for it
    await pool.close(0)
    await served.stop()


@pytest.mark.parametrize("protocol", [Asker, TrustingAsker])
@pytest.mark.parametrize("kind", ["plain", "keyed", "TLS"])
@pytest_twisted.inlineCallbacks
def test_noRequestIsLostOnAConnectionThatTheServerCloses(kind, protocol):
    yield bounded(ensureDeferred(closing(kind, protocol)), 20)


async def closing(kind, protocol):
    authority = makeAuthority() if kind == "TLS" else None
    served = await Server(protocol=Closing).start(authority)
    pool = makePool(kind, served.endpoint(authority), protocol, maxSize=3)
    got = {}
    questions = [b"%d" % number for number in range(60)]
    results = await DeferredList(
        [viaLease(pool, question, got) for question in questions], consumeErrors=True
    )
    assert [why for good, why in results if not good] == []
    assert sorted(got) == sorted(questions) == sorted(served.got)
    await pool.close(0)
    await served.stop()


@pytest_twisted.inlineCallbacks
def test_aParkedConnectionServesOneUser():
    yield bounded(ensureDeferred(parked()), 15)


async def parked():
    served = await Server(protocol=Chatty).start()
    ahead = PooledEndpoint(reactor, served.endpoint(), maxSize=4)
    got = {}

    async def use(question):
        factory = Factory.forProtocol(Asker)
        factory.noisy = False
        protocol = await ahead.connect(factory)
        got[question] = await protocol.ask(question)
        protocol.transport.loseConnection()

    for _ in range(3):
        await DeferredList([ensureDeferred(use(each)) for each in QUESTIONS])
        assert got == {each: b"re:" + each for each in QUESTIONS}
    await ahead.close()
    await until(lambda: not served.live)
    await served.stop()


@pytest_twisted.inlineCallbacks
def test_aRelayedClientReadsItsOwnAnswer():
    yield bounded(ensureDeferred(relayed()), 20)


async def relayed():
    served = await Server(protocol=Chatty).start()
    options = poolrelay.Options()
    options.parseOptions(
        f"--listen tcp:0:interface=127.0.0.1 --max-size 2 "
        f"--upstream tcp:127.0.0.1:{served.number}".split()
    )
    service = poolrelay.makeService(options, reactor)
    service.startService()
    number = service.listening.getHosts()[0].port
    got = {}

    async def use(question):
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", number)
        protocol = await connectProtocol(endpoint, Asker())
        got[question] = await protocol.ask(question)
        protocol.transport.loseConnection()

    for _ in range(3):
        got.clear()
        await DeferredList([ensureDeferred(use(each)) for each in QUESTIONS])
        assert got == {each: b"re:" + each for each in QUESTIONS}
    await service.stopService()
    await until(lambda: not served.live)
    await served.stop()
