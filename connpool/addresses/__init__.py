"""
Text to address and back.  Parsing is pure; look-ups end.
"""

from typing import TYPE_CHECKING

from connpool.addresses.clients import Client, UnknownAddress, clientOf
from connpool.addresses.descriptions import Listen, parseListen, tokenize
from connpool.addresses.hostport import joinHostPort, placeOf, splitHostPort
from connpool.addresses.networks import Networks
from connpool.later import importLater

if TYPE_CHECKING:
    from connpool.addresses.clientstrings import clientEndpoint
    from connpool.addresses.goaddress import TCPAddr, UDPAddr
    from connpool.addresses.names import NameResolver
    from connpool.addresses.resolve import resolveTCPAddr, resolveUDPAddr
    from connpool.addresses.targets import resolveTarget

__all__ = [
    "Client",
    "Listen",
    "NameResolver",
    "Networks",
    "TCPAddr",
    "UDPAddr",
    "UnknownAddress",
    "clientEndpoint",
    "clientOf",
    "joinHostPort",
    "parseListen",
    "placeOf",
    "resolveTCPAddr",
    "resolveTarget",
    "resolveUDPAddr",
    "splitHostPort",
    "tokenize",
]

#: Imported when first asked for: a service that only listens looks no name up.
_LATER = {
    "NameResolver": "names",
    "TCPAddr": "goaddress",
    "UDPAddr": "goaddress",
    "clientEndpoint": "clientstrings",
    "resolveTCPAddr": "resolve",
    "resolveTarget": "targets",
    "resolveUDPAddr": "resolve",
}

__getattr__ = importLater(__name__, _LATER)
