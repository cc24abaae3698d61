"""
PROXY protocol: who the client is when a proxy stands between.

A service learns about its client as it always does: C{buildProtocol(addr)},
C{transport.getPeer()}.  What a header cannot give is a privilege of direct
local connections: ask L{connpool.addresses.clientOf}.
"""

from connpool.proxyprotocol.client import ProxyHeaderEndpoint
from connpool.proxyprotocol.connection import Policy, ProxiedConnection, ProxyInfo
from connpool.proxyprotocol.datagram import DatagramHeaders
from connpool.proxyprotocol.header import (
    MAX_HEADER,
    Header,
    HeaderParser,
    NotAHeader,
    encodeV1,
    encodeV2,
    parseDatagram,
)
from connpool.proxyprotocol.secured import SecuredEndpoint, ServerCertificate
from connpool.proxyprotocol.server import ProxiedEndpoint, ProxiedFactory, ProxyStats, Trusted
from connpool.proxyprotocol.tlvs import SSLInfo, TLVs

__all__ = [
    "MAX_HEADER",
    "DatagramHeaders",
    "Header",
    "HeaderParser",
    "NotAHeader",
    "Policy",
    "ProxiedConnection",
    "ProxiedEndpoint",
    "ProxiedFactory",
    "ProxyHeaderEndpoint",
    "ProxyInfo",
    "ProxyStats",
    "SSLInfo",
    "SecuredEndpoint",
    "ServerCertificate",
    "TLVs",
    "Trusted",
    "encodeV1",
    "encodeV2",
    "parseDatagram",
]
