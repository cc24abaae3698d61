"""
One file that comes whole, in one request or as a part of one.

A plain one is hashed by nobody, as in the classic protocol.  SHA digests of all of it are
computed where the client tells or wants one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twisted.internet.defer import Deferred

from connpool.errors import DigestMismatch, NetworkFailed, TransferError
from connpool.transfer.digests import digestNamed, rootOf
from connpool.transfer.receive.reception import Incoming, Reception, storeFailure
from connpool.transfer.receive.smallfiles import WholeFiles
from connpool.transfer.records import Offer, Receipt, SmallFile
from connpool.transfer.web.fields import DIGESTS
from connpool.transfer.web.problems import Problem

__all__ = ["SMALL_FILE_BYTES", "Digester", "WholeFile", "putSmall", "rootOfWhole"]

#: Bytes of a file that is stored in one piece.
SMALL_FILE_BYTES = 256 * 1024


class Digester:
    """
    SHA digests of one file.

    @param algorithms: of L{DIGESTS}.
    """

    def __init__(self, algorithms: Iterable[str]) -> None:
        self._hashers = {name: DIGESTS[name]() for name in algorithms}

    def update(self, data: memoryview) -> None:
        """
        Take the bytes that follow.
        """
        for hasher in self._hashers.values():
            hasher.update(data)

    def compare(self, told: Mapping[str, bytes]) -> dict[str, bytes]:
        """
        @param told: the digests that the client has told.
        @return: those that were computed.
        @raise DigestMismatch: they differ.
        """
        computed = {name: hasher.digest() for name, hasher in self._hashers.items()}
        for name, digest in told.items():
            if name not in computed:
                raise Problem(400, "a digest behind the body is announced by Trailer: Repr-Digest")
            if computed[name] != digest:
                raise DigestMismatch(f"the bytes that came have another {name} than was told")
        return computed


def rootOfWhole(
    size: int, told: Mapping[str, bytes], computed: Mapping[str, bytes]
) -> bytes | None:
    """
    @param size: bytes.
    @param told: digests that the client has told, and that agree.
    @param computed: all that were computed.
    @return: the root over the file as one block of SHA-256; L{None} if the client vouches for
        nothing.
    """
    if not told:
        return None
    return rootOf(digestNamed("sha256"), size, max(size, 1), [computed["sha-256"]][: size or 0])


class WholeFile:
    """
    A file on its way in.

    @param incoming: the reception's hand on its partial.
    @param digester: hashes it.
    """

    def __init__(self, incoming: Incoming, digester: Digester) -> None:
        self._incoming = incoming
        self._digester = digester
        self._offset = 0

    @classmethod
    async def begin(
        cls,
        reception: Reception,
        offer: Offer,
        peer: str,
        digester: Digester,
        end: Callable[[TransferError], Any],
    ) -> WholeFile:
        """
        Open a partial for C{offer}.

        @param end: called if the file has to end.
        @raise TransferError: why it is refused.
        """
        incoming = await reception.begin(offer, peer, end)
        assert isinstance(incoming, Incoming), "a new key finishes nothing twice"
        return cls(incoming, digester)

    def write(self, view: memoryview) -> Deferred[None] | None:
        """
        Take the bytes that follow.

        @return: L{None} when C{view} is not needed any more, else a Deferred that fires then.
        @raise TransferError: as L{Incoming.write}.
        """
        written = self._incoming.write(self._offset, view)
        self._offset += len(view)
        # while the bytes are in the processor's cache
        self._digester.update(view)
        return written

    async def commit(self, told: Mapping[str, bytes]) -> tuple[Receipt, dict[str, bytes]]:
        """
        Publish it.

        @param told: the digests that the client has told.
        @return: the receipt, and the digests that were computed.
        @raise TransferError: it is not published.
        """
        size = self._incoming.offer.size
        if size is not None and self._offset != size:
            raise NetworkFailed(f"{self._offset} bytes came of {size}")
        computed = self._digester.compare(told)
        root = rootOfWhole(self._offset, told, computed)
        receipt = await self._incoming.commit(root, computed.get("sha-256"))
        return receipt, computed

    async def abort(self, why: BaseException) -> None:
        """
        Remove every trace of it.
        """
        await self._incoming.abort(why)


async def putSmall(
    reception: Reception, offer: Offer, data: bytes, root: bytes | None, peer: str
) -> Receipt:
    """
    Store a file that came in one piece.

    @raise TransferError: it is not stored.
    """
    outcomes = WholeFiles(reception).put([SmallFile(offer, data, root)], offer.identity, peer)
    [outcome] = outcomes if isinstance(outcomes, list) else await outcomes
    if isinstance(outcome, Receipt):
        return outcome
    raise storeFailure(outcome)
