"""
Real servers for the pool's tests, and a certificate authority of their own.
"""

from __future__ import annotations

import trustme
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    wrapClientTLS,
)
from twisted.internet.protocol import Factory, Protocol, ServerFactory


class Served(Protocol):
    """
    Echoes, and is known to its server.
    """

    def connectionMade(self):
        self.received = b""
        self.factory.live.append(self)
        self.factory.most = max(self.factory.most, len(self.factory.live))
        self.factory.total += 1
        if self.factory.greeting:
            self.transport.write(self.factory.greeting)

    def dataReceived(self, data):
        self.received += data
        self.transport.write(data)

    def connectionLost(self, reason):
        self.factory.live.remove(self)


class Server(ServerFactory):
    """
    A server on a port of its own.
    """

    protocol = Served
    noisy = False

    def __init__(self, greeting=b"", protocol=Served):
        self.live = []
        self.most = self.total = 0
        self.greeting = greeting
        self.protocol = protocol

    async def start(self, authority=None):
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        factory = self
        if authority is not None:
            from twisted.protocols.tls import TLSMemoryBIOFactory

            issued = authority.issue_cert("localhost", "127.0.0.1")
            pem = issued.private_key_and_cert_chain_pem.bytes()
            options = ssl.PrivateCertificate.loadPEM(pem).options()
            factory = TLSMemoryBIOFactory(options, False, self)
            factory.noisy = False
        self.port = await endpoint.listen(factory)
        self.number = self.port.getHost().port
        return self

    async def stop(self):
        await self.port.stopListening()
        for each in list(self.live):
            each.transport.abortConnection()
        from tests.helpers.waiting import until

        await until(lambda: not self.live)

    def endpoint(self, authority=None):
        return plainOrSecure(self.number, authority)


def makeAuthority():
    """
    @return: a new certificate authority.
    """
    return trustme.CA()


def plainOrSecure(port, authority=None):
    """
    @return: a client endpoint; with TLS if there is an authority to trust.
    """
    if authority is None:
        return TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    pem = authority.cert_pem.bytes()
    options = ssl.optionsForClientTLS(
        "localhost", trustRoot=ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(pem)])
    )
    return wrapClientTLS(options, TCP4ClientEndpoint(reactor, "127.0.0.1", port))


class Talker(Protocol):
    """
    A client that asks one thing at a time.
    """

    def __init__(self):
        self.received = b""
        self.lost = 0
        self._waiting = None

    def ask(self, question):
        """
        @return: fires with as many bytes as were sent.
        """
        self.received = b""
        self._count = len(question)
        self._waiting = Deferred()
        self.transport.write(question)
        return self._waiting

    def dataReceived(self, data):
        self.received += data
        if self._waiting is not None and len(self.received) >= self._count:
            waiting, self._waiting = self._waiting, None
            waiting.callback(self.received)

    def connectionLost(self, reason):
        self.lost += 1
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.errback(reason)


def talkers():
    """
    @return: a factory of L{Talker}.
    """
    factory = Factory.forProtocol(Talker)
    factory.noisy = False
    return factory


__all__ = [
    "HostnameEndpoint",
    "Served",
    "Server",
    "Talker",
    "makeAuthority",
    "plainOrSecure",
    "talkers",
]
