"""
The objects that name the upload of a resume key.

A pointer names the one that goes on.  When that has ended another object says so, and the
pointer goes: of two receivers that begin the same file, the one that slept through the whole
life of the other's upload finds that this object has changed.
"""

from __future__ import annotations

import attrs

from connpool.errors import Busy
from connpool.transfer.stores.s3 import calls
from connpool.transfer.stores.s3.calls import (
    ABSENT,
    Conflict,
    Get,
    Looked,
    Match,
    Missing,
    Put,
)

__all__ = ["Pointer", "Seen"]


@attrs.frozen
class Pointer:
    """
    The upload of a resume key.

    @ivar size: bytes that it was declared with; 0 if unknown.
    """

    token: str
    size: int = 0

    def encode(self) -> bytes:
        return f"{self.token} {self.size}".encode()

    @classmethod
    def of(cls, found: Looked) -> Pointer | None:
        if not found:
            return None
        token, _, size = found.body.decode("ascii", "replace").partition(" ")
        return cls(token, int(size) if size.isdecimal() else 0)


@attrs.frozen
class Seen:
    """
    The objects of a resume key as they were read.

    @ivar ended: the one that names the last upload that ended.
    """

    live: Looked = attrs.field(factory=Missing)
    ended: Looked = attrs.field(factory=Missing)

    @property
    def pointer(self) -> Pointer | None:
        return Pointer.of(self.live)


def _endedOf(key: str) -> str:
    return key.replace("/partials/", "/ended/", 1)


async def look(key: str) -> Seen:
    live, ended = await calls.together((Get(key), Get(_endedOf(key))))
    return Seen(live, ended)


async def point(key: str, to: Pointer, seen: Seen) -> None:
    """
    Let a pointer name an upload.

    @param seen: what was read before it was begun.
    @raise Busy: somebody else has begun one meanwhile.
    """
    busy = Busy("another receiver has just begun this upload; send the file again")
    condition = Match(seen.live.etag) if seen.live else ABSENT
    isLost = isinstance(await Put(key, to.encode(), condition), Conflict)
    if isLost and Pointer.of(await Get(key)) != to:
        raise busy
    if Pointer.of(await Get(_endedOf(key))) != Pointer.of(seen.ended):
        await _remove(key, to.token)
        raise busy


async def over(key: str, token: str) -> None:
    """
    Say that an upload has ended.
    """
    await Put(_endedOf(key), Pointer(token).encode())
    await _remove(key, token)


async def forget(key: str, token: str) -> None:
    """
    Remove what names an upload that ended long ago.
    """
    await _remove(key, token)
    await _remove(_endedOf(key), token)


async def _remove(key: str, token: str) -> None:
    named = Pointer.of(await Get(key))
    if named is not None and named.token == token:
        await calls.Delete(key)
