"""
TLS for clients: the authorities that are trusted, and the reason of a handshake that
failed.

OpenSSL is imported by the functions that need it: a program that connects without TLS
does not wait for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

from zope.interface import implementer

from connpool.errors import (
    AddressError,
    CertificateRefused,
    Forbidden,
    NetworkFailed,
    ProtocolError,
    TransferError,
)
from connpool.regularfiles import readRegular

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = [
    "ACCESS_DENIED",
    "TLS_ALERT",
    "clientTLS",
    "connectionLoss",
    "readCertificates",
    "trustRootFiles",
]

#: The fatal alert C{access_denied} as a TLS record (RFC 8446, sections 5.1 and 6): the only
#: thing that can be said to a client before it has said anything.
ACCESS_DENIED = bytes([21, 3, 3, 0, 2, 2, 49])
#: Alerts begin with it: the answer of a TLS server to a peer that does not speak TLS.
TLS_ALERT = ACCESS_DENIED[:2]

#: OpenSSL's numbers (C{X509_V_ERR_*}) of certificates by unknown authorities.
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
_NOT_YET_VALID, _EXPIRED = 9, 10

#: Words in OpenSSL's reasons.  A peer that does not speak TLS,
_PLAIN = ("wrong version number", "packet length too long", "http request", "unknown protocol")
#: and alerts about our certificate.
_OURS_REFUSED = (
    *("alert certificate required", "alert unknown ca", "alert bad certificate"),
    *("alert certificate expired", "alert certificate revoked", "alert certificate unknown"),
    *("alert unsupported certificate", "alert decrypt error"),
)
#: No version, cipher or (before TLS 1.3) certificate that suits both.
_NOTHING_IN_COMMON = (
    *("alert handshake failure", "alert protocol version", "unsupported protocol"),
    *("no shared cipher", "no ciphers available", "alert insufficient security"),
)


def readCertificates(path: Path, what: str) -> list[Certificate]:
    """
    @param path: of a PEM file.
    @param what: the option that names the file, for messages.
    @raise AddressError: for a file without a certificate, or with a broken one.
    """
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(readRegular(path))
    except OSError as e:
        raise AddressError(f"{what} {str(path)!r}: {e.strerror}") from None
    except ValueError:
        raise AddressError(f"{what} {str(path)!r} has no valid certificate in PEM form") from None


def trustRootFiles(path: Path, what: str = "trustRoots") -> Any:
    """
    Read the authorities that are trusted.

    @param path: a PEM file, or a directory of such files named C{*.pem}.
    @return: what Twisted takes for C{trustRoot}.
    @raise AddressError: for files that cannot be used; one line.
    """
    from OpenSSL import crypto
    from twisted.internet.ssl import Certificate, trustRootFromCertificates

    files = sorted(path.glob("*.pem")) if path.is_dir() else [path]
    if not files:
        raise AddressError(f"{what} {str(path)!r} has no *.pem files")
    return trustRootFromCertificates(
        [
            Certificate(crypto.X509.from_cryptography(each))
            for file in files
            for each in readCertificates(file, what)
        ]
    )


def _ownCertificate(certificate: str, privateKey: str) -> Any:
    """
    @raise AddressError: for files that cannot be used; one line.
    """
    from OpenSSL import SSL, crypto
    from twisted.internet.error import VerifyError
    from twisted.internet.ssl import PrivateCertificate

    text = b""
    for what, path in (("certificate", certificate), ("privateKey", privateKey)):
        try:
            text += readRegular(path) + b"\n"
        except OSError as e:
            raise AddressError(f"{what} {path!r}: {e.strerror}") from None
    try:
        return PrivateCertificate.loadPEM(text)
    except (SSL.Error, crypto.Error, VerifyError, ValueError, TypeError):
        raise AddressError(
            f"certificate {certificate!r} and privateKey {privateKey!r} are not a certificate "
            "and its key, without passphrase, in PEM form"
        ) from None


def clientTLS(
    host: str,
    trustRoots: str | None = None,
    certificate: str | None = None,
    privateKey: str | None = None,
    *,
    what: str = "trustRoots",
) -> Any:
    """
    @param host: the name or address that the certificate must be for.
    @param trustRoots: a PEM file or a directory of them; a certificate in it is trusted
        whether it is an authority's or the server's own.  L{None} for the system's.
    @param certificate: a PEM file with the certificate to show.
    @param privateKey: a PEM file with its key; C{certificate} if left out.
    @param what: the option that names C{trustRoots}, for messages.
    @return: an L{IOpenSSLClientConnectionCreator}.
    @raise AddressError: for files that cannot be used; one line.
    """
    if "" in {trustRoots, certificate, privateKey}:
        raise AddressError(f"{what}=, certificate= and privateKey= need the name of a file")
    if privateKey is not None and certificate is None:
        raise AddressError("privateKey= goes with certificate=FILE")
    roots = None if trustRoots is None else trustRootFiles(Path(trustRoots), what)
    own = None if certificate is None else _ownCertificate(certificate, privateKey or certificate)
    from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
    from twisted.internet.ssl import optionsForClientTLS

    try:
        options = optionsForClientTLS(host, trustRoot=roots, clientCertificate=own)
    except UnicodeError:
        raise AddressError(f"{host!r} is not a host name") from None
    return implementer(IOpenSSLClientConnectionCreator)(_Verifying)(
        options, host, roots is not None
    )


class _Verifying:
    """
    Makes connections that say why a certificate is not trusted.

    @param pinned: whether the trusted certificates were named one by one.
    """

    def __init__(self, options: Any, host: str, pinned: bool) -> None:
        self._options = options
        self._host = host
        self._pinned = pinned

    def clientConnectionForTLS(self, tlsProtocol: Any) -> Any:
        """
        @return: an OpenSSL connection.
        """
        from OpenSSL import SSL, crypto

        connection = self._options.clientConnectionForTLS(tlsProtocol)
        if self._pinned:
            # a server's own certificate may be trusted, not only an authority's
            store = connection.get_context().get_cert_store()
            store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        weak = ref(tlsProtocol)

        def verify(_: Any, certificate: Any, number: int, depth: int, ok: int) -> bool:
            why = self._trouble(certificate, number, depth, ok)
            protocol = weak()
            if why and protocol is not None:
                from twisted.python.failure import Failure

                protocol.failVerification(Failure(CertificateRefused(why)))
            return not why

        mode = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        connection.set_verify(mode, verify)
        return connection

    def _trouble(self, certificate: Any, number: int, depth: int, ok: int) -> str:
        """
        @return: why C{certificate} is not trusted; empty if it is.
        """
        try:
            if not ok:
                return _whyNot(certificate, number, self._host)
            return "" if depth else _wrongName(certificate, self._host)
        except Exception as e:  # nothing may leave a callback of OpenSSL
            return f"the certificate of {self._host} cannot be read: {e}"


def _whyNot(certificate: Any, number: int, host: str) -> str:
    whose = f"the certificate of {host} is not trusted"
    x509 = certificate.to_cryptography()
    if number == _EXPIRED:
        return f"{whose}: it expired on {x509.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if number == _NOT_YET_VALID:
        return (
            f"{whose}: it is valid from {x509.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; "
            "is the clock right?"
        )
    if number in _UNKNOWN_AUTHORITY:
        issuer = ascii(x509.issuer.rfc4514_string())[1:-1]
        return (
            f"{whose}: no authority known here signed it (its issuer is {issuer}); name the "
            "authority's certificate with --ca FILE or trustRoots=FILE"
        )
    return f"{whose} (OpenSSL's verification error {number})"


def _wrongName(certificate: Any, host: str) -> str:
    from service_identity.exceptions import CertificateError, VerificationError
    from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
    from service_identity.pyopenssl import extract_patterns
    from twisted.internet.abstract import isIPAddress, isIPv6Address

    try:
        patterns = extract_patterns(certificate)
        if isIPAddress(host) or isIPv6Address(host):
            wanted: Any = IPAddress_ID(host)
        else:
            # service_identity would need another package for other names
            wanted = DNS_ID(host if host.isascii() else host.encode("idna").decode())
        verify_service_identity(patterns, [wanted], [])
    except (CertificateError, VerificationError):
        names = ", ".join(certificateNames(certificate.to_cryptography())) or (
            "no name: it has no subjectAltName"
        )
        return f"the certificate is not for {host}; it is for {names}"
    return ""


def certificateNames(certificate: Certificate) -> list[str]:
    """
    @return: the host names and addresses that C{certificate} is for.
    """
    from cryptography.x509 import DNSName, ExtensionNotFound, IPAddress, SubjectAlternativeName

    try:
        found = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except (ExtensionNotFound, ValueError):
        return []
    names = [ascii(name)[1:-1] for name in found.get_values_for_type(DNSName)]
    return [*names, *(str(address) for address in found.get_values_for_type(IPAddress))]


def connectionLoss(why: BaseException) -> TransferError:
    """
    Say what the end of a connection means: a certificate that is not trusted, or a
    peer that speaks no TLS, will be the same in a second.

    @param why: what C{connectionLost} was given.
    """
    if isinstance(why, TransferError):
        return why
    room = type(why).__module__.partition(".")[0]
    if room == "service_identity":
        return CertificateRefused("the certificate is for another host")
    text = " ".join(str(why).split()).rstrip(".") or type(why).__name__
    if room == "OpenSSL" and why.args and isinstance(why.args[0], list):
        # a list of (library, function, reason)
        text = "TLS: " + ", ".join(str(error[-1]) for error in why.args[0])
        final = _handshakeFailure(text)
        if final is not None:
            return final
    return NetworkFailed(f"the connection was lost: {text}")


def _handshakeFailure(text: str) -> TransferError | None:
    """
    @return: what will not change; L{None} for damage on the way.
    """
    if "certificate verify failed" in text:
        return CertificateRefused("the certificate is not trusted; see --ca and trustRoots=")
    if "alert access denied" in text:
        return Forbidden("the receiver lets no connection from this address in; see its --allow")
    if any(reason in text for reason in _OURS_REFUSED):
        return CertificateRefused(
            f"the other side did not accept our certificate ({text}); show one that it knows with "
            "tls:HOST:PORT:certificate=FILE:privateKey=FILE"
        )
    if any(reason in text for reason in _PLAIN):
        return ProtocolError(
            f"the other side does not speak TLS on this port ({text}); leave out tls:"
        )
    if any(reason in text for reason in _NOTHING_IN_COMMON):
        return ProtocolError(
            f"the handshake failed ({text}): no version or cipher of TLS in common, or a client "
            "certificate is asked for"
        )
    return None
