"""
The prober's own source port is not one that echoes suspect.
"""

from __future__ import annotations

import socket

import pytest
import pytest_twisted
from twisted.internet import reactor

from connpool.datagram import Auto, Prober, SturdyPort
from connpool.datagram.limits import ANSWERING_PORTS
from tests.datagram.peers import answering, where
from tests.helpers.waiting import bounded


@pytest.mark.parametrize("number", [5353, 27015])
@pytest_twisted.ensureDeferred
async def test_aSuspectPortIsGivenBack(monkeypatch, number):
    """
    As the system may choose it where net.ipv4.ip_local_port_range is wide.
    """
    given = iter([number, number])
    bind = SturdyPort._bind

    def choose(self):
        if self._asked[1] == 0 and (next_ := next(given, None)) is not None:
            self._asked = (self._asked[0], next_)
        return bind(self)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("", number))
        except OSError:
            pytest.skip(f"port {number} is in use")
    with answering(Auto()) as port:
        monkeypatch.setattr(SturdyPort, "_bind", choose)
        prober = Prober(reactor, *where(port), count=3, interval=0.01, timeout=1.0)
        done = prober.start()
        assert prober._port.getHost().port not in ANSWERING_PORTS
        report = await bounded(done)
        assert report.received == 3
        assert next(given, None) is None
