"""
Reading what is published on an S3 engine.

Objects that others put into the bucket are files as any.  A directory is what keys lie below;
the engine keeps none.  Names that no sender could have, the store's own among them, are not
there.

Theory of operation
===================
Each part of a file is read by one request, which the engine answers from one object; the
version, made of the object's ETag, size and time, tells a reader that the next part is of another.

An engine sorts keys, and so C{a/} after C{a.txt}; a listing is sorted by names.  A page of
the engine that ends at C{a.txt} may therefore have left out the directory C{a}, and only those
whose names are a beginning of the last one: these few are looked for by their own.

Known limits: a listing tells when an object was stored; the time that its sender gave it costs a
request for each, and comes with the content.  If both an object and a directory have a name,
which no sender brings about, the object is listed.
"""

from __future__ import annotations

import hashlib
import re

from connpool.errors import Busy, NameRefused, Unavailable
from connpool.transfer.names import RelativeName
from connpool.transfer.records import FileRange, ListedEntry, Listing
from connpool.transfer.stores.reading import MAX_READ_BYTES, notFound
from connpool.transfer.stores.s3.calls import Found, Get, Head, List, Listed, together
from connpool.transfer.stores.s3.claims import MODIFIED
from connpool.transfer.stores.s3.layout import Layout

__all__ = ["listing", "modifiedOf", "read"]

#: Names of a page of the engine: so many of the longest keys are still XML that is parsed.
PAGE_NAMES = 250
#: After a directory's key: behind all that lies in it.
_LAST = "\U0010ffff"
#: More bytes than any object has; engines make strange things of longer offsets.
_MOST_BYTES = 1 << 60


def modifiedOf(there: Found) -> int:
    """
    Return the time of a file, in nanoseconds: its sender's, else when it was stored.
    """
    modified = there.metadata.get(MODIFIED, "")
    told = modified.removeprefix("-").isdecimal() and len(modified) < 20
    return int(modified) if told else int(there.modified * 1e9)


async def read(layout: Layout, name: RelativeName, start: int, end: int) -> FileRange:
    """
    Read a part of a file, as L{IReadableStore.read}; a core.
    """
    key = _keyOf(layout, name)
    end = min(end, start + MAX_READ_BYTES, _MOST_BYTES)
    there = await Get(key, (start, end)) if 0 <= start < end else await Head(key)
    if there and start < end and not there.body:
        # past the end: such an answer says nothing else of the object
        there = await Head(key)
    if not there:
        raise notFound(name)
    if len(there.body) != max(0, min(end, there.size) - start):
        raise Busy(f'"{name}" was replaced while it was read')
    modified = modifiedOf(there)
    values = repr((there.etag, there.size, modified, there.modified))
    version = hashlib.blake2b(values.encode(), digest_size=16).digest()
    return FileRange(there.body, there.size, modified, version)


def _keyOf(layout: Layout, name: RelativeName) -> str:
    try:
        layout.check(name)
    except NameRefused:
        raise notFound(name) from None
    return layout.file(name.path)


async def listing(
    layout: Layout, directory: RelativeName | None, after: str, limit: int
) -> Listing:
    """
    Read a page of a directory, as L{IReadableStore.listing}; a core.
    """
    prefix = layout.prefix if directory is None else f"{_keyOf(layout, directory)}/"
    found: dict[str, ListedEntry] = {}
    # no path: some engines would read it as one
    begin = re.split(r"[/\\]", after)[0]
    start, more, isThere = prefix + begin if begin else "", True, directory is None
    while more and len(found) <= limit:
        page = await List(prefix, start, min(limit + 1, PAGE_NAMES), delimiter="/")
        before, start, more = start, _endOf(page), page.more
        if more and start.encode() <= before.encode():
            raise Unavailable("the engine's listing of this directory does not go on")
        isThere = isThere or bool(start)
        for each in _entriesOf(page, prefix):
            if each.name.encode() > after.encode():
                found.setdefault(each.name, each)
    if more:
        for each in await _leftOut(prefix, start[len(prefix) :], after):
            found.setdefault(each.name, each)
    if not isThere and not (after and (await List(prefix, limit=1)).entries):
        raise notFound(directory)
    names = sorted(found, key=str.encode)
    return Listing(tuple(found[each] for each in names[:limit]), more or len(names) > limit)


def _endOf(page: Listed) -> str:
    """
    Return where a page of the engine ends: below all keys of its last directory.
    """
    ends = [each.key for each in page.entries[-1:]]
    ends += [each + _LAST for each in page.prefixes[-1:]]
    return max(ends, key=str.encode, default="")


def _entriesOf(page: Listed, prefix: str) -> list[ListedEntry]:
    length = len(prefix)
    files = [
        ListedEntry(each.key[length:], False, each.size, int(each.modified * 1e9))
        for each in page.entries
        if each.key.startswith(prefix)
    ]
    directories = [_directory(each[length:-1]) for each in page.prefixes if each.startswith(prefix)]
    return [each for each in files + directories if _isName(each.name)]


def _directory(name: str) -> ListedEntry:
    return ListedEntry(name, directory=True, size=0, modified=0)


def _isName(text: str) -> bool:
    try:
        return (
            "/" not in text and "\\" not in text and bool(RelativeName.parse(text, profile="posix"))
        )
    except NameRefused:
        return False


async def _leftOut(prefix: str, last: str, after: str) -> list[ListedEntry]:
    """
    Return directories that come before C{last} by name, and after it by key.
    """
    name = last.partition("/")[0]
    starts = [name[:at] for at, letter in enumerate(name) if letter < "/"]
    if "/" not in last:
        starts.append(name)
    wanted = [each for each in starts if each.encode() > after.encode() and _isName(each)]
    pages = await together(List(f"{prefix}{each}/", limit=1) for each in wanted)
    return [_directory(each) for each, page in zip(wanted, pages, strict=True) if page.entries]
