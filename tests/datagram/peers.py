"""
Ports under test and plain sockets that talk to them.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager

from twisted.internet import reactor
from twisted.internet.protocol import DatagramProtocol

from connpool.datagram import AnsweringPort, Echo, Limits, OwnPorts, Policy, SturdyPort
from tests.helpers.waiting import until


class Recorder(DatagramProtocol):
    """
    Keeps what arrives, and how often it was told of refusals and stops.
    """

    noisy = False

    def __init__(self):
        self.got = []
        self.refused = 0
        self.stopped = 0

    def datagramReceived(self, datagram, addr):
        self.got.append((datagram, addr))

    def connectionRefused(self):
        self.refused += 1

    def stopProtocol(self):
        self.stopped += 1


class EchoProtocol(Recorder):
    def datagramReceived(self, datagram, addr):
        super().datagramReceived(datagram, addr)
        self.transport.write(datagram, addr)


@contextmanager
def opened(port):
    port.startListening()
    try:
        yield port
    finally:
        port.stopListening()


@contextmanager
def sturdy(protocol, interface="127.0.0.1", **options):
    with opened(SturdyPort(reactor, protocol, 0, interface, **options)) as port:
        yield port


@contextmanager
def answering(responder=None, policy=None, interface="127.0.0.1", **options):
    """
    A port that answers, not knowing of those of other tests.
    """
    own = options.pop("ownPorts", None) or OwnPorts()
    limits = options.pop("limits", None) or Limits(policy or Policy(), own)
    answers = responder or Echo()
    port = AnsweringPort(reactor, answers, limits, 0, interface, ownPorts=own, **options)
    with opened(port):
        yield port


@contextmanager
def client(host="127.0.0.1", port=0, to=None):
    """
    A plain non-blocking socket.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((host, port))
        if to is not None:
            sock.connect(to)
        yield sock


def read(sock):
    """
    The next datagram, or None.
    """
    try:
        return sock.recv(70_000)
    except BlockingIOError:
        return None


async def answer(sock, seconds=10.0):
    """
    The next datagram, in a list so that an empty one is true.
    """

    def poll():
        data = read(sock)
        return None if data is None else [data]

    return (await until(poll, seconds))[0]


def where(port, host=None):
    """
    A port's address for a socket.
    """
    address = port.getHost()
    return (host or address.host, address.port)
