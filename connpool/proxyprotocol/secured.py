"""
TLS around any server endpoint.

Twisted's C{ssl:} listens on TCP and nothing else, so TLS cannot go inside
another protocol with it, nor outside one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.addresses.tls import readCertificates, trustRootFiles
from connpool.errors import AddressError
from connpool.interfaces import IReloadable
from connpool.regularfiles import readRegular
from connpool.tlstransport import BulkTLSTransport

__all__ = ["LAST_WORD_SECONDS", "SecuredEndpoint", "ServerCertificate"]

#: Seconds of silence that a close waits for the other side to close its TLS too.
LAST_WORD_SECONDS = 10.0
#: The type of the record that a TLS client begins with (RFC 8446, section 5.1),
HANDSHAKE = 22
#: and the alert for a peer that begins with something else.
UNEXPECTED_MESSAGE = bytes([21, 3, 3, 0, 2, 2, 10])


def _read(path: Path, what: str) -> bytes:
    try:
        return readRegular(path)
    except OSError as e:
        raise AddressError(f"{what} {str(path)!r}: {e.strerror}") from None


@implementer(IOpenSSLServerConnectionCreator, IReloadable)
class ServerCertificate:
    """
    The certificate a TLS server shows, read from files.

    @param certificate: PEM file, the server's own certificate first, then
        the chain.
    @param privateKey: PEM file, without a passphrase; may be the same file.
    @param trustRoots: PEM file of authorities, or a directory of such files
        named C{*.pem}: clients must show a certificate by one of them.
    @raise AddressError: for files that cannot be used; one line.
    """

    def __init__(self, certificate: str, privateKey: str, trustRoots: str | None = None) -> None:
        self._certificate = Path(certificate)
        self._privateKey = Path(privateKey)
        self._trustRoots = Path(trustRoots) if trustRoots is not None else None
        self.reload()

    def reload(self) -> None:
        """
        As L{IReloadable.reload}.

        @raise AddressError: for files that cannot be used.
        """
        # Any: Twisted's annotations still say X509 and PKey, which pyOpenSSL deprecates
        chain: list[Any] = readCertificates(self._certificate, "certificate")
        text = _read(self._privateKey, "privateKey")
        try:
            key: Any = load_pem_private_key(text, None)
        except (ValueError, TypeError):
            raise AddressError(
                f"privateKey {str(self._privateKey)!r} has no private key without passphrase "
                "in PEM form"
            ) from None
        options = CertificateOptions(
            privateKey=key,
            certificate=chain[0],
            extraCertChain=chain[1:],
            trustRoot=None if self._trustRoots is None else trustRootFiles(self._trustRoots),
        )
        try:
            options.getContext()
        except (SSL.Error, TypeError) as e:  # TypeError: a kind of key that TLS has no use for
            why = e.args[0][-1][-1] if isinstance(e, SSL.Error) and e.args[0] else str(e)
            raise AddressError(
                f"privateKey {str(self._privateKey)!r} does not fit the certificate "
                f"{str(self._certificate)!r}: {why}"
            ) from None
        self._options = options

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        return self._options.serverConnectionForTLS(tlsProtocol)


class _SecuredTransport(BulkTLSTransport):
    """
    Twisted's waits for ever for the other side's part in a close: who does not
    answer would keep the connection, and its place among those allowed.
    """

    _late: Any = None
    _first = True

    def loseConnection(self) -> None:
        super().loseConnection()
        transport = self.transport
        if self._late is None and self.connected and transport is not None:
            # what is still to be written is, and then the connection is closed
            factory: Any = self.factory
            self._late = factory.clock.callLater(LAST_WORD_SECONDS, transport.loseConnection)

    def dataReceived(self, data: bytes) -> None:
        first, self._first = self._first, False
        if first and data[0] != HANDSHAKE and self.transport is not None:
            # OpenSSL would hang up without a word
            self.transport.write(UNEXPECTED_MESSAGE)
            self.transport.loseConnection()
            return
        if self._late is not None and self._late.active():
            self._late.reset(LAST_WORD_SECONDS)
        super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._late is not None and self._late.active():
            self._late.cancel()
        super().connectionLost(reason)


class _SecuredFactory(TLSMemoryBIOFactory):
    """
    Lets the wrapped factory refuse a connection, which Twisted's crashes on.
    """

    protocol = _SecuredTransport

    def __init__(
        self, clock: Any, certificate: ServerCertificate, wrapped: IProtocolFactory
    ) -> None:
        super().__init__(certificate, False, wrapped, clock)
        self.clock = clock

    def buildProtocol(self, addr: IAddress | None) -> Any:
        inner = self.wrappedFactory.buildProtocol(addr)
        return None if inner is None else self.protocol(self, inner)


@implementer(IStreamServerEndpoint)
class SecuredEndpoint:
    """
    TLS 1.2 or newer on what C{endpoint} accepts.

    @ivar endpoint: what is listened on.
    @ivar certificate: what is shown; C{certificate.reload()} renews it.
    """

    def __init__(
        self, reactor: Any, endpoint: IStreamServerEndpoint, certificate: ServerCertificate
    ) -> None:
        self._reactor = reactor
        self.endpoint = endpoint
        self.certificate = certificate

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        return self.endpoint.listen(
            _SecuredFactory(self._reactor, self.certificate, protocolFactory)
        )
