"""
The sender of an offer; and the answer to an offer whose key got a receipt before.

A receipt is kept for days, and the file may be taken away at once: that a sender offers the
same content again under the same key does not mean that it is there still.  So the receipt
of an earlier run says what became of the file, in its extension C{earlier}.
"""

from __future__ import annotations

import attrs
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.interfaces import IFileStore
from connpool.transfer.digests import Digest
from connpool.transfer.identities import ANONYMOUS, Identity
from connpool.transfer.names import RelativeName
from connpool.transfer.records import FileStat, Offer, Receipt

__all__ = ["GONE", "THERE", "UNKNOWN", "Sender", "earlierOf"]

#: Values of the extension: there is no file of that name and size; there is; nobody knows.
GONE, THERE, UNKNOWN = b"\0", b"\1", b"\2"

_log = Logger()


@attrs.frozen
class Sender:
    """
    The other side of a session, once it is let in.

    @ivar peer: its name in logs.
    @ivar identity: the operator's entry for it; L{None} if everybody may send.
    @ivar digest: the algorithm of the session.
    @ivar capabilities: those that both sides have.
    """

    peer: str
    identity: Identity | None
    digest: Digest
    capabilities: frozenset[str]

    @property
    def principal(self) -> str:
        """
        The owner of its files.
        """
        return ANONYMOUS if self.identity is None else self.identity.principal


def earlierOf(
    store: IFileStore, sender: Sender, offer: Offer, receipt: Receipt
) -> Deferred[bytes | None]:
    """
    @return: fires with the value of the extension; with L{None} for a receipt that C{offer}
        itself got, and for a sender that is not told.  Never fails.
    """
    if receipt.transferId == offer.transferId or "earlier" not in sender.capabilities:
        return succeed(None)

    def found(status: FileStat | None) -> bytes | None:
        return THERE if status is not None and status.size == receipt.size else GONE

    def failed(failure: Failure) -> bytes | None:
        _log.info("cannot look for {name}: {why}", name=receipt.name, why=failure.value)
        return UNKNOWN

    def look() -> Deferred[FileStat | None]:
        return store.stat(RelativeName.parse(receipt.name, profile="posix"))

    return maybeDeferred(look).addCallbacks(found, failed)
