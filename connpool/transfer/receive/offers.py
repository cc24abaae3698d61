"""
The offer in a message, under a receiver's policy.  Pure.
"""

from __future__ import annotations

from connpool.errors import Forbidden
from connpool.transfer.identities import ANONYMOUS, Identity
from connpool.transfer.names import RelativeName
from connpool.transfer.receive.reception import Policy
from connpool.transfer.records import Offer
from connpool.transfer.wire.messages import Offering, Put, timeOf

__all__ = ["nameOf", "offerOf"]

#: The rules that a sender may ask for under each rule of ours, beside that rule itself.
_MAY_ASK = {"rename": ("refuse", "skip"), "replace": ("rename", "refuse", "skip")}


def nameOf(raw: bytes, policy: Policy, identity: Identity | None) -> RelativeName:
    """
    @param raw: a name as the sender wrote it.
    @return: that of the store, in the directory of C{identity}.
    @raise NameRefused: it is not taken.
    """
    name = RelativeName.parse(raw, profile=policy.names, dotfiles=policy.dotfiles)
    if identity is not None and identity.directory is not None:
        name = name.under(identity.directory)
    return name


def offerOf(
    message: Offering | Put,
    policy: Policy,
    identity: Identity | None,
    digest: str,
    size: int | None,
    blockSize: int,
    resumeKey: bytes | None = None,
) -> Offer:
    """
    @param identity: of the sender; L{None} if everybody may send.
    @param digest: the session's algorithm.
    @raise TransferError: it may not be offered.
    """
    name = nameOf(message.name, policy, identity)
    rule = policy.ifExists
    asked = message.ifExists or rule
    if asked != rule and asked not in _MAY_ASK.get(rule, ()):
        raise Forbidden(f"the receiver does not let senders {asked!r}; its rule is {rule!r}")
    return Offer(
        name=name,
        transferId=message.transferId.hex(),
        size=size,
        principal=ANONYMOUS if identity is None else identity.principal,
        identity=identity,
        key=message.key,
        resumeKey=resumeKey,
        modified=timeOf(message),
        executable=message.executable,
        digest=digest,
        blockSize=blockSize,
        ifExists=asked,
        durability=message.durability,
        protocol="native",
    )
