"""
Names that another system would take for one.

Theory of operation
===================
C{Makefile} and C{makefile}, or C{é} as one character and as two, are different
names here and the same one on a disk of Windows or macOS.  Where names are to
be portable such a neighbour has the name: L{CaseIndex.claim} gives a name to
something only if nothing in its directory has another name of the same
L{caselessForm}.

A directory is listed when it is first claimed in; what this store adds is noted
under the lock under which it was checked, so it never makes two neighbours,
whichever threads publish.  About everybody else the index is a hint: a
neighbour is looked for before it is believed, so a name that a consumer took
away is free at once and no peer can make us list anything; one that somebody
else added is seen at the next listing.

That is due every C{LISTING_SECONDS} while files arrive, but time for it is
rationed: after any listing there is none, but of directories not seen before,
for C{REST_FACTOR} times as long as it took.  Listings that take longer than
C{QUICK_LISTING_SECONDS} are spared while C{ctime} says that nobody but us
changed the directory.  (It proves less than a listing: where the kernel's clock
for files has coarse ticks, it does not show what happened within one.)

C{DIRECTORY_NAMES} names of one directory are indexed, C{TOTAL_NAMES} together or fewer, where
what else is remembered leaves less room; what was looked at longest ago is dropped first.
Without an index names are kept apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from threading import Lock
from time import monotonic
from typing import Protocol, TypeVar, TypeVarTuple

from connpool.errors import Exists
from connpool.transfer.names import caselessForm, displayName
from connpool.transfer.syscalls import Syscalls

__all__ = ["CaseIndex", "Claim", "Index", "keepApart", "neighbourExists"]

#: Names of one directory, and of all; and the bytes that one takes: 100 to 400.
DIRECTORY_NAMES = 65_536
TOTAL_NAMES = 2 * DIRECTORY_NAMES
NAME_BYTES = 400
#: Directories that are remembered, with their names or without.
KEPT_DIRECTORIES = 1024
#: Seconds between looks at a directory, and at one that has too many names.
LISTING_SECONDS = 0.25
LARGE_LISTING_SECONDS = 60.0
#: Seconds without a listing for each second of one.
REST_FACTOR = 50
#: Seconds of a listing that there is no point in sparing.
QUICK_LISTING_SECONDS = 0.001

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class Indexed(Protocol):
    """
    An open directory, which remembers the index of its names.
    """

    fd: int
    inode: tuple[int, int]
    index: Index | None


class Claim(Protocol):
    """
    The decision whether a name may be given.
    """

    def __call__(
        self, directory: Indexed, name: str, place: Callable[[*_Ts], _T], /, *arguments: *_Ts
    ) -> _T:
        """
        Call C{place}, which puts C{name} into C{directory} or raises.

        @return: what it returned.
        @raise Exists: if a neighbour has the name; C{place} was not called.
        """


def keepApart(_directory: Indexed, _name: str, place: Callable[[*_Ts], _T], *arguments: *_Ts) -> _T:
    """
    The L{Claim} of C{names="posix"}: every name stands for itself.
    """
    return place(*arguments)


class Index:
    """
    The names in one directory, as far as they are known.

    @ivar names: hash of the caseless form to the name, since a form may be
        long and no peer can know Python's hashes; L{None} if not indexed.
    @ivar counted: how many of them L{CaseIndex} has counted.
    @ivar due: when to look again.
    @ivar took: seconds of the last listing.
    @ivar changed: C{ctime} of the directory when C{names} was all there was;
        L{None} before the first listing.
    """

    __slots__ = ("changed", "counted", "due", "lock", "names", "took")

    def __init__(self) -> None:
        self.lock = Lock()
        self.names: dict[int, str] | None = None
        self.counted = 0
        self.due = float("-inf")
        self.took = 0.0
        self.changed: int | None = None


class CaseIndex:
    """
    The directories of one store, as far as their names are known.

    @param room: the bytes that the names may take; asked when some are added.
    """

    def __init__(
        self, syscalls: Syscalls, room: Callable[[], int] = lambda: TOTAL_NAMES * NAME_BYTES
    ) -> None:
        self._sys = syscalls
        self._room = room
        self._lock = Lock()
        #: by device and inode, looked at longest ago first
        self._indexes: OrderedDict[tuple[int, int], Index] = OrderedDict()
        self._counted = 0
        self._rested = float("-inf")

    def claim(
        self, directory: Indexed, name: str, place: Callable[[*_Ts], _T], *arguments: *_Ts
    ) -> _T:
        """
        The L{Claim} of C{names="portable"}.
        """
        index = directory.index or self._indexOf(directory)
        with index.lock:
            now = monotonic()
            current = now >= index.due and self._look(index, directory, now)
            names = index.names  # another thread may drop it, not change it
            if names is None:
                return place(*arguments)
            form = hash(name.lower() if name.isascii() else caselessForm(name))
            other = names.get(form)
            if other is not None and other != name and self._areNeighbours(directory, other, name):
                raise neighbourExists(name, other)
            placed = place(*arguments)
            names[form] = name
            if len(names) > DIRECTORY_NAMES:
                index.names = None
            elif current and index.took > QUICK_LISTING_SECONDS:
                index.changed = self._sys.fstat(directory.fd).st_ctime_ns
            return placed

    @property
    def takenBytes(self) -> int:
        """
        The memory that the names take, at most.
        """
        return self._counted * NAME_BYTES

    def _indexOf(self, directory: Indexed) -> Index:
        with self._lock:
            directory.index = self._indexes.setdefault(directory.inode, Index())
            return directory.index

    def _look(self, index: Index, directory: Indexed, now: float) -> bool:
        """
        List the directory if that is called for.

        @return: whether C{index} holds what is there now.
        """
        changed = self._sys.fstat(directory.fd).st_ctime_ns
        spared = (
            index.names is not None
            and index.took > QUICK_LISTING_SECONDS
            and index.changed == changed
        )
        if spared or (index.changed is not None and now < self._rested):
            index.due = now + LISTING_SECONDS
            return spared
        with self._sys.scandir(directory.fd) as entries:
            found = [entry.name for entry in islice(entries, DIRECTORY_NAMES + 1)]
        if len(found) <= DIRECTORY_NAMES:
            index.names = {hash(caselessForm(name)): name for name in found}
            index.due = now + LISTING_SECONDS
        else:
            index.names = None
            index.due = now + LARGE_LISTING_SECONDS
        index.changed = changed
        index.took = monotonic() - now
        self._rested = now + (1 + REST_FACTOR) * index.took
        self._keep(index, directory.inode)
        return True

    def _keep(self, index: Index, inode: tuple[int, int]) -> None:
        """
        Remember what was listed, and forget what is too much.
        """
        with self._lock:
            self._indexes[inode] = index
            self._indexes.move_to_end(inode)
            self._counted += len(index.names or ()) - index.counted
            index.counted = len(index.names or ())
            if len(self._indexes) > KEPT_DIRECTORIES:
                self._drop(self._indexes.popitem(last=False)[1])
            most = min(TOTAL_NAMES, self._room() // NAME_BYTES)
            for each in self._indexes.values():
                if self._counted <= most:
                    return
                self._drop(each)

    def _drop(self, index: Index) -> None:
        self._counted -= index.counted
        index.names, index.counted = None, 0

    def _areNeighbours(self, directory: Indexed, other: str, name: str) -> bool:
        """
        C{other} is there, and C{name} is not beside it already.  On a file
        system that folds case both lead to the same inode.
        """
        theirs = self._inode(directory, other)
        return theirs is not None and self._inode(directory, name) in {None, theirs}

    def _inode(self, directory: Indexed, name: str) -> tuple[int, int] | None:
        status = self._sys.statIfThere(name, directory.fd)
        return None if status is None else (status.st_dev, status.st_ino)


def neighbourExists(name: str, other: str) -> Exists:
    """
    Return the refusal of the component C{name} because C{other} is there.
    """
    return Exists(
        f'"{displayName(name)}" differs only in case or composition from'
        f' "{displayName(other)}", which the receiver has; it keeps both with --names posix'
    )
