"""
Sockets that were bound, and got datagrams, before the service was there.
"""

from __future__ import annotations

import socket

import pytest
import pytest_twisted

from connpool.datagram import Auto, Stamp
from tests.datagram.peers import answer, answering, client


def bound(family, host, *, dual):
    sock = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual else 1)
    sock.bind((host, 0))
    return sock


@pytest.mark.parametrize(
    ("family", "host", "asked", "dual"),
    [
        (socket.AF_INET, "0.0.0.0", "127.0.0.1", False),
        (socket.AF_INET, "0.0.0.0", "127.0.0.9", False),
        (socket.AF_INET, "127.0.0.1", "127.0.0.1", False),
        (socket.AF_INET6, "::", "::1", False),
        (socket.AF_INET6, "::1", "::1", False),
        (socket.AF_INET6, "::", "::1", True),
        (socket.AF_INET6, "::", "127.0.0.1", True),
    ],
)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("responder", [Auto, Stamp])
@pytest_twisted.ensureDeferred
async def test_datagramsThatWaitedAreAnswered(family, host, asked, dual, batched, responder):
    adopted = bound(family, host, dual=dual)
    address = (asked, adopted.getsockname()[1])
    own = "::1" if ":" in asked else "127.0.0.1"
    # connected: an answer from another address than the one asked does not count
    with client(own, to=address) as sock:
        packets = [bytes([i]) * 44 for i in range(1, 6)]
        for packet in packets:
            sock.send(packet)
        with answering(responder(), adopt=adopted, interface=host, batched=batched) as port:
            sock.send(b"\7" * 44)
            answers = [await answer(sock) for _ in range(6)]
            assert port.stats().refused == {}
            assert port.stats().sendErrors == {}
        if responder is Auto:
            assert answers == [*packets, b"\7" * 44]


@pytest_twisted.ensureDeferred
async def test_broadcastsThatWaitedAreNot():
    adopted = bound(socket.AF_INET, "0.0.0.0", dual=False)
    port = adopted.getsockname()[1]
    with client() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sock.sendto(b"to all", ("127.255.255.255", port))
        sock.sendto(b"to one", ("127.0.0.1", port))
        with answering(Auto(), adopt=adopted, interface="0.0.0.0") as answers:
            assert await answer(sock) == b"to one"
            # no answer can leave from a broadcast address
            assert answers.stats().answered == 1
