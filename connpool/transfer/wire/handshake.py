"""
The agreement of two C{HELLO}s.  Pure; both sides compute it and come to the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import attrs

from connpool.errors import TransferError, Unsupported
from connpool.transfer.wire.frames import PREAMBLE, Type
from connpool.transfer.wire.messages import Error, Hello, encode

__all__ = [
    "BEGINNINGS",
    "CAPABILITIES",
    "CAPABLE",
    "FROM_SENDER",
    "ON_JOINED",
    "READ",
    "VERSIONS",
    "Agreement",
    "agree",
    "refusal",
    "transcriptOf",
]

VERSIONS = (1,)
#: C{join}: further connections carry data of a session.  C{best}: the durability may be
#: asked for as the highest that can be reached.  C{earlier}: a receipt that an earlier
#: offer got says so, and whether the file is there still.  C{directories}: the receiver
#: makes directories and sets their times.  C{puts}: many small files come in one frame.
#: C{holes}: ranges of zeros are told, and stored as holes.  C{update}: the receiver tells
#: what it has.
CAPABILITIES = ("join", "best", "earlier", "directories", "puts", "holes", "update", "zstd")

#: The capability of those who read: files are listed and read.  A receiver has it if anybody
#: may read there.
READ = "read"

#: The types that begin something, and all that are taken after the greeting and on a
#: connection that has joined another.
BEGINNINGS = frozenset({Type.PUT, Type.PUTS, Type.OFFER, Type.DIRECTORY, Type.ASK})
FROM_SENDER = frozenset(
    {
        *(Type.PUT, Type.OFFER, Type.DATA, Type.DIGESTS, Type.REVOKE, Type.COMMIT, Type.CANCEL),
        *(Type.PING, Type.PONG, Type.JOIN, Type.ERROR),
    }
)
ON_JOINED = frozenset({Type.DATA, Type.DIGESTS, Type.PING, Type.PONG, Type.ERROR})
#: The types that need a capability.
CAPABLE = {
    Type.DIRECTORY: "directories",
    Type.PUTS: "puts",
    Type.HOLE: "holes",
    Type.PACKED: "zstd",
    Type.LIST: READ,
    Type.READ: READ,
    Type.ASK: "update",
}


@attrs.frozen
class Agreement:
    """
    The terms of one session.

    @ivar version: of the protocol.
    @ivar digest: the algorithm's name.
    @ivar capabilities: those both sides have.
    """

    version: int
    digest: str
    capabilities: frozenset[str]


def agree(sender: Hello, receiver: Hello) -> Agreement:
    """
    Find the terms that both sides can keep.

    @raise Unsupported: if there is no common version or digest; names both
        lists.
    """
    versions = set(sender.versions) & set(receiver.versions)
    if not versions:
        raise Unsupported(_nothingInCommon("version", sender.versions, receiver.versions))
    for digest in receiver.digests:
        if digest in sender.digests:
            break
    else:
        raise Unsupported(_nothingInCommon("digest", sender.digests, receiver.digests))
    common = frozenset(sender.capabilities) & frozenset(receiver.capabilities)
    return Agreement(max(versions), digest, common)


def _nothingInCommon(what: str, sender: Sequence[object], receiver: Sequence[object]) -> str:
    mine, theirs = (", ".join(map(ascii, items)) or "none" for items in (sender, receiver))
    return f"no common {what}: the sender has {mine}; the receiver has {theirs}"


def transcriptOf(sender: bytes, receiver: bytes) -> bytes:
    """
    The hash by which both sides see that nobody changed their C{HELLO}s.

    @param sender: the sender's C{HELLO} frame as it was on the wire.
    @param receiver: the receiver's.
    """
    return hashlib.sha256(sender + receiver).digest()


def refusal(why: TransferError) -> bytes:
    """
    Say that a peer is not let in, before it has said anything itself.

    @return: what a receiver sends before it closes the connection.
    """
    return PREAMBLE + encode(Type.ERROR, 0, Error(why.code, str(why)))
