"""
Text to address and back.  Parsing is pure: no reactor, no look-up.
"""

from connpool.addresses.clients import Client, UnknownAddress, clientOf
from connpool.addresses.descriptions import Listen, parseListen, tokenize
from connpool.addresses.hostport import joinHostPort, splitHostPort
from connpool.addresses.networks import Networks

__all__ = [
    "Client",
    "Listen",
    "Networks",
    "UnknownAddress",
    "clientOf",
    "joinHostPort",
    "parseListen",
    "splitHostPort",
    "tokenize",
]
