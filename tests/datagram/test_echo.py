"""
The echo responder through real sockets, in batches and one by one.
"""

from __future__ import annotations

import os
import socket

import pytest
import pytest_twisted
from zope.interface.verify import verifyObject

from connpool.datagram import Echo
from connpool.interfaces import IDatagramResponder, IReflector, IStatsSource
from tests.datagram.peers import answer, answering, client, where

BATCHED = pytest.mark.parametrize("batched", [True, False], ids=["batched", "plain"])
INTERFACES = [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::", "::1")]


def test_interfaces():
    verifyObject(IDatagramResponder, Echo())
    verifyObject(IReflector, Echo())
    with answering() as port:
        verifyObject(IStatsSource, port)


@BATCHED
@pytest.mark.parametrize(("interface", "host"), INTERFACES)
@pytest_twisted.ensureDeferred
async def test_everySizeComesBackAsSent(batched, interface, host):
    with (
        answering(interface=interface, batched=batched) as port,
        client(host, to=where(port, host)) as sock,
    ):
        total = 0
        for size in (0, 1, 3, 64, 1472, 8192, 8193, 20_000, 65_507):
            data = os.urandom(size)
            sock.send(data)
            assert await answer(sock) == data
            total += size
        stats = port.stats()
        assert (stats.received, stats.answered) == (9, 9)
        assert stats.receivedBytes == stats.answeredBytes == total
        assert not stats.refused
        assert not stats.sendErrors


@BATCHED
@pytest_twisted.ensureDeferred
async def test_manyClientsAtOnceGetTheirOwn(batched):
    with answering(batched=batched) as port:
        socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(20)]
        try:
            for sock in socks:
                sock.setblocking(False)
                sock.connect(where(port))
            for round_ in range(10):
                for i, sock in enumerate(socks):
                    sock.send(b"%d/%d" % (i, round_))
            for i, sock in enumerate(socks):
                got = [await answer(sock) for _ in range(10)]
                assert got == [b"%d/%d" % (i, round_) for round_ in range(10)]
        finally:
            for sock in socks:
                sock.close()
        assert port.stats().answered == 200


@BATCHED
@pytest_twisted.ensureDeferred
async def test_theWildcardAnswersFromTheAddressThatWasAsked(batched):
    with answering(interface="0.0.0.0", batched=batched) as port, client() as sock:
        for host in ("127.0.0.9", "127.0.0.1", "127.9.9.9"):
            # connected, so that the kernel drops an answer from elsewhere
            sock.connect(where(port, host))
            sock.send(host.encode())
            assert await answer(sock) == host.encode()
