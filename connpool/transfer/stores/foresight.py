"""
The verdict on a file in a dry run.

Theory of operation
===================
The same decisions as at publishing (L{connpool.transfer.stores.publish}), in
the same order, by looking only: nothing is made, and nothing is reserved.
Whoever publishes meanwhile makes it untrue.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from connpool.errors import Exists
from connpool.transfer.digests import blockCount, digestNamed, rootOf
from connpool.transfer.names import displayName
from connpool.transfer.records import Offer
from connpool.transfer.stores.caseindex import Claim
from connpool.transfer.stores.directories import Directories, Directory
from connpool.transfer.stores.publish import candidates, isTaken
from connpool.transfer.stores.ranges import blockRange
from connpool.transfer.stores.rehash import digestsOf
from connpool.transfer.syscalls import READ, Syscalls, isFile

__all__ = ["Foresight"]


class Foresight:
    """
    The verdicts of one store.

    @param directories: the published directories.
    @param claim: decides whether a name may be given.
    @param goesOn: asked before each block that is read.
    """

    def __init__(
        self, syscalls: Syscalls, directories: Directories, claim: Claim, goesOn: Callable[[], bool]
    ) -> None:
        self._sys = syscalls
        self._directories = directories
        self._claim = claim
        self._goesOn = goesOn

    def status(self, offer: Offer, root: bytes | None) -> str:
        """
        Foresee what becomes of the name, as L{connpool.interfaces.IFileStore.foresee}
        says; this may read a file as large as the one offered.
        """
        components = offer.name.components
        held = self._directories.acquire((), create=False)
        try:
            for depth in range(1, len(components)):
                try:
                    below = self._directories.acquire(components[:depth], create=False)
                except FileNotFoundError:
                    self._claim(held, components[depth - 1], _nothing)
                    return "stored"
                self._directories.release(held)
                held = below
            return self._choose(held, offer, root)
        finally:
            self._directories.release(held)

    def _choose(self, directory: Directory, offer: Offer, root: bytes | None) -> str:
        if offer.ifExists == "replace":
            last = offer.name.components[-1]
            self._claim(directory, last, _nothing)
            status = self._sys.statIfThere(last, directory.fd)
            if status is not None and stat.S_ISDIR(status.st_mode):
                raise Exists(f'"{displayName(last)}" is a directory on the receiver')
            return "stored"
        why: Exists | None = None
        for candidate in candidates(offer):
            last = candidate.components[-1]
            status = self._sys.statIfThere(last, directory.fd)
            if status is not None:
                same = self._same(directory, last, status, offer, root)
                if same:
                    return "duplicate"
                if same is None and offer.ifExists != "rename":
                    return "compare"
                continue
            try:
                self._claim(directory, last, _nothing)
            except Exists as neighbour:
                if candidate is offer.name:
                    why = neighbour
            else:
                return "stored"
        raise why or isTaken(offer)

    def _same(
        self,
        directory: Directory,
        name: str,
        status: os.stat_result,
        offer: Offer,
        root: bytes | None,
    ) -> bool | None:
        """
        Tell whether the content there is the one offered; L{None} if only its root
        can tell, and nobody said it.
        """
        if not isFile(status) or offer.size not in {None, status.st_size}:
            return False
        if root is None or offer.size is None or offer.digest is None:
            return None
        try:
            fd = self._sys.open(name, READ, dir_fd=directory.fd)
        except OSError:
            return False  # a link, or not ours to read: a different thing
        try:
            blocks = range(blockCount(offer.size, offer.blockSize))
            spans = [blockRange(block, offer.blockSize, offer.size) for block in blocks]
            digests = digestsOf(self._sys, fd, offer.digest, spans, self._goesOn)
        finally:
            self._sys.close(fd)
        whole = [each for each in digests if each is not None]
        digest = digestNamed(offer.digest)
        return len(whole) == len(blocks) and (
            rootOf(digest, offer.size, offer.blockSize, whole) == root
        )


def _nothing() -> None:
    """
    Put nothing into the place.
    """
