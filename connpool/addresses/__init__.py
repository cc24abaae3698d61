"""
Text to address and back.  Parsing is pure; look-ups end.
"""

from connpool.addresses.clients import Client, UnknownAddress, clientOf
from connpool.addresses.clientstrings import clientEndpoint
from connpool.addresses.descriptions import Listen, parseListen, tokenize
from connpool.addresses.goaddress import TCPAddr, UDPAddr
from connpool.addresses.hostport import joinHostPort, placeOf, splitHostPort
from connpool.addresses.names import NameResolver
from connpool.addresses.networks import Networks
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
