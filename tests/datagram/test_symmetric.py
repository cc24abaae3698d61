"""
Senders that use the port that they ask.
"""

from __future__ import annotations

import struct
import time

import pytest
import pytest_twisted

from connpool.datagram import Auto, Echo, Irtt, Limits, OwnPorts, Policy, Stamp
from connpool.datagram.irtt import MAGIC, formatParameters
from connpool.datagram.limits import ANSWERING_PORTS
from connpool.datagram.stamp import toNTP
from tests.datagram.peers import answer, answering, client, where
from tests.helpers.waiting import until

STAMP = struct.pack("!IQHH", 0, toNTP(time.time_ns()), 0x8001, 7) + bytes(28)
IRTT = MAGIC + b"\1" + formatParameters({1: 1, 2: 10**9, 3: 10**7, 4: 64})


@pytest.mark.parametrize(
    ("responder", "packet", "answered"),
    [(Stamp, STAMP, True), (Irtt, IRTT, True), (Echo, b"x" * 44, False), (Auto, IRTT, False)],
    ids=["stamp", "irtt", "echo", "auto"],
)
@pytest.mark.parametrize("batched", [True, False])
@pytest_twisted.ensureDeferred
async def test_theSamePortOnBothSides(responder, packet, answered, batched):
    """
    Of protocols that tell an answer from a request, only.
    """
    with (
        answering(responder(), batched=batched) as port,
        client("127.0.0.5", where(port)[1], to=where(port)) as sock,
    ):
        sock.send(packet)
        if answered:
            await answer(sock)
        else:
            await until(lambda: port.stats().refused == {"own-ports": 1})


def test_portsOfTheProtocolsButNoOthers():
    limits = Limits(Policy(), OwnPorts())
    assert limits.source(b"\xc0\x00\x02\x07", 862, "a").refusal == "low-ports"
    limits.exempt(Stamp.symmetricPorts | Irtt.symmetricPorts)
    for port, refusal in ((862, ""), (2112, ""), (0, "port-zero"), (53, "low-ports")):
        assert limits.source(b"\xc0\x00\x02\x07", port, port).refusal == refusal
    assert limits.source(b"\xff\xff\xff\xff", 862, "b").refusal == "sources"
    denied = Limits(Policy(allow=Policy().allow.parse(["10.0.0.0/8"])), OwnPorts())
    denied.exempt({862})
    assert denied.source(b"\xc0\x00\x02\x07", 862, "a").refusal == "denied"


@pytest_twisted.ensureDeferred
async def test_twoReflectorsComeToRest():
    """
    Both on the same port, and a forged packet of one to the other.
    """
    with answering(Stamp()) as one, answering(Stamp(), interface="127.0.0.5") as other:
        # as if both listened on it
        for port in (one, other):
            port.limits.exempt({where(one)[1], where(other)[1]})
        one._socket.sendto(STAMP, where(other))
        await until(lambda: one.stats().refused.get("stamp-answer", 0)
                    + other.stats().refused.get("stamp-answer", 0) == 1)  # fmt: skip
        assert one.received + other.received <= 4


def test_noAnsweringPortIsOneThatSystemsGiveToClients():
    assert max(ANSWERING_PORTS) < 32_768
