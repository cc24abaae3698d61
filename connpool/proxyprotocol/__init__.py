"""
PROXY protocol: who the client is when a proxy stands between.
"""

from connpool.proxyprotocol.header import (
    MAX_HEADER,
    Header,
    HeaderParser,
    NotAHeader,
    encodeV1,
    encodeV2,
    parseDatagram,
)
from connpool.proxyprotocol.tlvs import SSLInfo, TLVs

__all__ = [
    "MAX_HEADER",
    "Header",
    "HeaderParser",
    "NotAHeader",
    "SSLInfo",
    "TLVs",
    "encodeV1",
    "encodeV2",
    "parseDatagram",
]
