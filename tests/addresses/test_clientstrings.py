"""
Client endpoint strings of ours, and what the end of a TLS connection means.
"""

import pytest
import trustme
from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet import reactor
from twisted.internet.endpoints import HostnameEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock

from connpool.addresses import clientEndpoint
from connpool.addresses.clientstrings import clientString
from connpool.addresses.tls import ACCESS_DENIED, TLS_ALERT, connectionLoss
from connpool.errors import (
    AddressError,
    Busy,
    CertificateRefused,
    Forbidden,
    NetworkFailed,
    ProtocolError,
)
from connpool.tlstransport import TLSClientEndpoint


def where(endpoint):
    """
    Host, port and timeout of a C{tcp:} endpoint.
    """
    if isinstance(endpoint, TCP6ClientEndpoint):
        return endpoint._host, endpoint._port, endpoint._timeout
    assert isinstance(endpoint, HostnameEndpoint)
    return endpoint._hostText, endpoint._port, endpoint._timeout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp:inbox.example", ("inbox.example", 8640, 30.0)),
        ("tcp:inbox.example:1", ("inbox.example", 1, 30.0)),
        ("tcp:inbox.example:1:5", ("inbox.example", 1, 5.0)),
        ("tcp:host=inbox.example:port=1:timeout=0.5", ("inbox.example", 1, 0.5)),
        ("tcp:inbox.example:timeout=5", ("inbox.example", 8640, 5.0)),
        (r"tcp:\:\:1:1", ("::1", 1, 30.0)),
        ("tcp:[::1]", ("::1", 8640, 30.0)),
        ("tcp:[::1]:1:5", ("::1", 1, 5.0)),
        ("tcp:[fe80::1%lo]:1", ("fe80::1%lo", 1, 30.0)),
        ("tcp:bücher.example:1", ("xn--bcher-kva.example", 1, 30.0)),
    ],
)
def test_tcp(text, expected):
    assert where(clientEndpoint(reactor, text)) == expected


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "[::1]", "[::1]:1", "192.0.2.1"])
def test_tls(host):
    endpoint = clientEndpoint(reactor, f"tls:{host}")
    assert isinstance(endpoint, TLSClientEndpoint)
    assert where(endpoint.endpoint)[1] in {1, 8640}


def test_anEndpointBelow():
    below = clientEndpoint(reactor, r"tls:localhost:endpoint=tcp\:[\:\:1]\:7").endpoint
    assert where(below)[:2] == ("::1", 7)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("tcp:", "names no host"),
        ("tls::8640", "names no host"),
        ("tls:localhost:x", "1 to 65535"),
        ("tls:localhost:70000", "1 to 65535"),
        ("tcp:localhost:1:2:3:4:5", "too many parts"),
        ("tls:localhost:1:trustroots=x", "unknown trustroots"),
        ("tcp:localhost:1:trustRoots=x", "unknown trustRoots"),
        ("tcp:localhost:1:timeout=-1", "seconds above 0"),
        ("tcp:localhost:1:timeout=nan", "seconds above 0"),
        ("tcp:localhost:host=other", "host"),
        ("tcp:[::1]:1:host=other", "host"),
        ("tls:localhost:trustRoots=", "need the name of a file"),
        ("tls:localhost:privateKey=x", "goes with certificate="),
        ("tls:localhost:certificate=/missing.pem", "No such file"),
        ("tls:a..b", "not a host name"),
        ("tls:" + "a" * 64 + ".example", "not a host name"),
        ("tls:localhost\\", "backslash"),
    ],
)
def test_mistakes(text, remedy):
    with pytest.raises(AddressError) as caught:
        clientEndpoint(reactor, text)
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_aKeyThatDoesNotFit(tmp_path):
    authority = trustme.CA()
    for name in ("one", "other"):
        issued = authority.issue_cert(f"{name}.example")
        issued.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
    (tmp_path / "noise").write_bytes(b"noise")
    one, other = tmp_path / "one.pem", tmp_path / "other.key"
    clientEndpoint(reactor, f"tls:localhost:certificate={one}:privateKey={tmp_path}/one.key")
    for certificate, key in [(one, other), (one, one), (tmp_path / "noise", other)]:
        with pytest.raises(AddressError, match="not a certificate and its key"):
            clientEndpoint(reactor, f"tls:localhost:certificate={certificate}:privateKey={key}")


def test_withoutADefaultThePortIsNeeded():
    with pytest.raises(AddressError, match="1 to 65535"):
        clientString(reactor, "tls:localhost")
    with pytest.raises(AddressError, match="1 to 65535"):
        clientString(None, "tcp:localhost")
    clientString(reactor, "tls:localhost:1")


# -- the end of a connection -----------------------------------------------------------------


def said(*reasons):
    return SSL.Error([("SSL routines", "", reason) for reason in reasons])


@pytest.mark.parametrize(
    ("why", "kind", "retryable"),
    [
        (said("certificate verify failed"), CertificateRefused, False),
        (said("tlsv13 alert certificate required"), CertificateRefused, False),
        (said("tlsv1 alert unknown ca"), CertificateRefused, False),
        (said("sslv3 alert certificate expired"), CertificateRefused, False),
        (VerificationError([]), CertificateRefused, False),
        (said("tlsv1 alert access denied"), Forbidden, False),
        (said("wrong version number"), ProtocolError, False),
        (said("tlsv1 alert protocol version"), ProtocolError, False),
        (said("sslv3 alert handshake failure"), ProtocolError, False),
        # damage on the way, and what nobody foresaw
        (said("decryption failed or bad record mac"), NetworkFailed, True),
        (said(), NetworkFailed, True),
        (SSL.Error(), NetworkFailed, True),
        (SSL.SysCallError(-1, "Unexpected EOF"), NetworkFailed, True),
        (ConnectionLost(), NetworkFailed, True),
        (Busy("later"), Busy, True),
    ],
)
def test_whatAnEndMeans(why, kind, retryable):
    error = connectionLoss(why)
    assert type(error) is kind
    assert error.retryable is retryable
    assert "\n" not in str(error)
    assert str(error).strip()


def test_theAlertIsOneThatOpenSSLKnows():
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    connection = SSL.Connection(context, None)
    connection.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    connection.bio_write(ACCESS_DENIED)
    with pytest.raises(SSL.Error) as caught:
        connection.do_handshake()
    assert isinstance(connectionLoss(caught.value), Forbidden)
    assert ACCESS_DENIED.startswith(TLS_ALERT)


def test_noWordOfPython():
    for text, why in (("unix:/a:foo=1", "it takes no foo="), ("unix:/a:b:c:d", "a part is miss")):
        with pytest.raises(AddressError, match=why):
            clientEndpoint(Clock(), text)
