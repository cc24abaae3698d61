"""
Request after request on one connection: whoever acquires inside the read that brought
an answer waits for its end.
"""

import os

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IFileDescriptorReceiver
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from connpool.pool import AcquireTimeout, ConnectFailed, ConnectionPool
from tests.helpers.waiting import assertNoResult, failureResultOf, successResultOf
from tests.pool.building import Setup


class Asked(Protocol):
    """
    Answers one question at a time.

    @ivar meanwhile: called after the answer, in the same read.
    """

    answer = None
    meanwhile = None

    def ask(self):
        self.answer = Deferred()
        return self.answer

    def dataReceived(self, data):
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.callback(data)
        if self.meanwhile is not None:
            self.meanwhile()


class Requests(Setup):
    """
    A coroutine that asks again and again on a pool's only connection.
    """

    def __init__(self, **limits):
        super().__init__(maxSize=1, protocol=Asked, **limits)
        self.got = []
        self.task = Deferred.fromCoroutine(self.run())
        for _ in range(2):
            # what a new connection delivers first is followed by whole turns
            self.connection.guard.transport.receive(b"first")
            self.clock.pump([0, 0, 0])
        assert self.got == [b"first", b"first"]

    @property
    def connection(self):
        (connection,) = self.core.inventory.slots
        return connection

    async def run(self):
        while True:
            async with self.pool.lease(5.0) as protocol:
                self.got.append(await protocol.ask())

    def receive(self, data, meanwhile=None):
        self.connection.protocol.meanwhile = meanwhile
        self.connection.guard.transport.receive(data)

    def stop(self):
        self.task.addErrback(lambda _: None)
        self.task.cancel()
        self.end()


def test_theEndOfTheReadHandsTheConnectionOn():
    setup = Requests()
    setup.receive(b"more", lambda: assertNoResult(setup.task) or setup.check())
    setup.check()
    assert setup.got[2:] == [b"more"]
    assert setup.pool.stats().leased == 1
    assert setup.connection.protocol.answer is not None  # the next question, without a turn
    setup.stop()


@pytest.mark.parametrize("timeout", [0, 5.0])
def test_aDeadlineCountsAlsoWhereTheReadHandsNothingOn(timeout):
    setup = Requests()
    late = []

    def meanwhile():
        if not late:
            late.append(setup.pool.acquire(timeout))
            setup.pool.pause()  # nothing is handed on until it is resumed

    setup.receive(b"more", meanwhile)
    setup.clock.advance(4.9)
    assertNoResult(setup.task)
    if timeout:
        assertNoResult(late[0])
    setup.clock.advance(0.2)
    failureResultOf(setup.task, AcquireTimeout)
    failureResultOf(late[0], AcquireTimeout)
    setup.pool.resume()
    assert setup.pool.stats().idle == 1
    setup.end()


def test_aDeadlineCountsWhereMoreAcquireInTheReadThanReturn():
    setup = Requests()
    late = []

    def meanwhile():
        if not late:
            late.append(setup.pool.acquire(2.0))

    setup.receive(b"more", meanwhile)
    assertNoResult(late[0])
    setup.clock.advance(2.0)
    failureResultOf(late[0], AcquireTimeout)
    setup.stop()


def alone():
    """
    The same without the coroutine, and a lease of the connection.
    """
    setup = Requests()
    setup.task.addErrback(lambda _: None)
    setup.task.cancel()  # its connection goes, and the next one is a new one
    setup.turn()
    lease = successResultOf(setup.pool.acquire())
    setup.receive(b"first", lease.release)
    setup.clock.pump([0, 0, 0])
    return setup, successResultOf(setup.pool.acquire())


def test_whoDoesNotWaitAtAllIsRefusedInTheRead():
    setup, lease = alone()
    failures = []

    def meanwhile():
        lease.release()
        setup.pool.acquire(0).addErrback(failures.append)
        assert [failure.type for failure in failures] == [AcquireTimeout]

    setup.receive(b"more", meanwhile)
    assert failures
    assert setup.pool.stats().idle == 1
    setup.end()


def test_aBlockThatIsClosedWhileItWaitsLosesNoConnection():
    setup, lease = alone()
    scope = setup.pool.lease()

    def meanwhile():
        lease.release()
        entering = scope.__aenter__()
        entering.send(None)
        entering.close()

    setup.receive(b"more", meanwhile)
    setup.turn()
    setup.check()
    assert setup.pool.stats().leased == 0
    assert setup.pool.stats().leasesLostToGC == 0

    async def again():
        async with scope as protocol:
            return protocol

    assert successResultOf(Deferred.fromCoroutine(again())) is not None
    assert setup.pool.stats().leased == 0
    setup.end()


def test_cancellingInTheReadLeavesTheConnectionToTheNext():
    setup = Requests()
    order = []

    def meanwhile():
        if not order:
            order.append("read")
            setup.task.addErrback(lambda _: order.append("cancelled"))
            setup.task.cancel()
            setup.pool.acquire().addCallback(lambda lease: order.append(lease) or None)

    setup.receive(b"more", meanwhile)
    assert order[:2] == ["read", "cancelled"]
    setup.check()
    assert setup.pool.stats().leased == 1
    order[2].release()
    setup.end()


class Raising(Asked):
    """
    Does not like what comes behind an answer.
    """

    def dataReceived(self, data):
        super().dataReceived(data)
        raise ValueError("garbage")


@pytest.mark.parametrize("waiting", [0, 1])
def test_aConnectionWhoseProtocolRaisedIsNotHandedOn(waiting):
    setup = Setup(maxSize=1, protocol=Raising)
    lease = successResultOf(setup.pool.acquire())
    lease.protocol.ask().addCallback(lambda _: lease.release())
    waiters = [setup.pool.acquire() for _ in range(waiting)]
    (transport,) = setup.endpoint.transports
    with pytest.raises(ValueError, match="garbage"):
        transport.receive(b"answer")
    setup.clock.pump([0, 0, 0])
    assert not transport.connected
    for waiter in waiters:
        other = successResultOf(waiter)
        assert other.protocol.transport is not transport
        other.release()
    setup.check()
    setup.end()


def test_whoHoldsAConnectionWhoseProtocolRaisedIsTheLast():
    setup = Setup(maxSize=1, protocol=Raising)
    lease = successResultOf(setup.pool.acquire())
    (transport,) = setup.endpoint.transports
    with pytest.raises(ValueError, match="garbage"):
        transport.receive(b"answer")
    lease.release()  # before the reactor has closed it
    assert setup.pool.stats().closed == {"peer": 1}
    setup.turn()
    setup.end()


def test_aProtocolThatRaisesInPrepareIsNamed():
    setup = Setup(maxSize=1, protocol=Raising)
    prepared = ConnectionPool(
        setup.clock,
        setup.endpoint,
        Factory.forProtocol(Raising),
        prepare=lambda protocol: Deferred(),
        name="prepared",
    )
    waiter = prepared.acquire()
    with pytest.raises(ValueError, match="garbage"):
        setup.endpoint.transports[0].receive(b"hello")
    error = failureResultOf(waiter, ConnectFailed)
    assert "its own protocol raised ValueError('garbage')" in str(error)
    prepared.close(0)
    setup.clock.pump([1.0] * 20)
    setup.end()


@implementer(IFileDescriptorReceiver)
class Receiving(Asked):
    """
    Is answered by a descriptor.
    """

    def fileDescriptorReceived(self, descriptor):
        os.close(descriptor)
        answer, self.answer = self.answer, None
        answer.callback(descriptor)


def test_theBytesBehindADescriptorReachNobodyElse():
    setup = Setup(maxSize=1, protocol=Receiving)
    lease = successResultOf(setup.pool.acquire())
    lease.protocol.ask().addCallback(lambda _: lease.release())
    waiter = setup.pool.acquire()
    (transport,) = setup.endpoint.transports
    transport.protocol.fileDescriptorReceived(os.dup(0))
    assertNoResult(waiter)
    transport.receive(b"came with it")
    setup.clock.pump([0, 0, 0])
    assert successResultOf(waiter).protocol.transport is not transport
    setup.pool.close(0)
    setup.clock.pump([1.0] * 20)
    setup.end()


def test_aDescriptorOnAnIdleConnectionIsClosedWithIt():
    setup = Setup(maxSize=1, protocol=Receiving)
    successResultOf(setup.pool.acquire()).release()
    (transport,) = setup.endpoint.transports
    descriptor = os.dup(0)
    transport.protocol.fileDescriptorReceived(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    setup.turn()
    assert setup.pool.stats().size == 0
    setup.end()
