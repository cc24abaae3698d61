"""
A store in memory, for embedders' tests.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from connpool.errors import (
    ConflictTakeover,
    Exists,
    NoSpace,
    StoreError,
    TransferError,
)
from connpool.interfaces import (
    IDirectoryStore,
    IFileStore,
    IInspectablePartial,
    IInspectableStore,
    IPartial,
    IPartialHolder,
    IReadableStore,
    ISparsePartial,
    ISparseStore,
    IUpdateStore,
)
from connpool.transfer.digests import Digest, chooseBlockSize, digestNamed, rootOf
from connpool.transfer.names import RelativeName, caselessForm, displayName
from connpool.transfer.records import (
    DIFFERS,
    SAME,
    UNTOLD,
    AskedFile,
    DirectoryMade,
    FileRange,
    FileStat,
    ListedEntry,
    Listing,
    Offer,
    PartialInfo,
    Receipt,
)
from connpool.transfer.stores.caseindex import neighbourExists
from connpool.transfer.stores.journal import continues
from connpool.transfer.stores.publish import Published, candidates, isTaken, receiptOf
from connpool.transfer.stores.ranges import Holding, verifyDeclared
from connpool.transfer.stores.reading import MAX_READ_BYTES, notFound
from connpool.transfer.stores.takeover import Takeovers, Tenure

__all__ = ["MEMORY_CAPACITY_BYTES", "MemoryStore"]

#: What a store in memory holds if nothing else is said.
MEMORY_CAPACITY_BYTES = 1 << 30


@implementer(IInspectablePartial, ISparsePartial)
class _MemoryPartial(Holding):
    checkpointSeconds = None

    def __init__(
        self, store: MemoryStore, offer: Offer, partialId: str, tenure: Tenure | None
    ) -> None:
        super().__init__(offer)
        self._store = store
        self._tenure = tenure
        self.epoch = 0 if tenure is None else tenure.epoch
        self.partialId = partialId
        self.content = bytearray()
        self.changed = store._now()

    def takeOver(self, older: _MemoryPartial) -> None:
        self.content = older.content
        self.goOnFrom(older)
        older._gate = ConflictTakeover(f'"{self.offer.name}": a newer connection took over')

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        end = offset + len(data)
        self._verifyFree(offset, end)
        self._reach(end)
        self.content[offset:end] = data
        self.held.add(offset, end)
        self.changed = self._store._now()

    def skip(self, start: int, end: int) -> None:
        self._verifyFree(start, end)
        written = min(end, len(self.content)) - start
        self._reach(end)
        if written > 0:
            self.content[start : start + written] = bytes(written)
        self.held.add(start, end)
        self.changed = self._store._now()

    def _reach(self, end: int) -> None:
        """
        Have memory for the bytes before C{end}.
        """
        more = end - len(self.content)
        if more > 0:
            self._store._take(more)
            self.content.extend(bytes(more))

    def read(self, start: int, end: int) -> Deferred[bytes]:
        if self._gate is not None:
            return fail(self._gate)
        if not self.held.covers(start, end):
            return fail(StoreError(f'"{self.offer.name}": bytes {start} to {end} are not held'))
        return succeed(bytes(self.content[start:end]))

    def declare(self, offer: Offer) -> None:
        self._verifyOpen()
        if offer.size != self.offer.size:
            verifyDeclared(self.offer, offer, self.held.end)
            self._store._fits(offer, self.content)
            self._recorded.size = offer.size
        self.offer = offer

    def settled(self) -> Deferred[Sequence[tuple[int, int]]]:
        return succeed([])

    def checkpoint(self) -> Deferred[None]:
        if self._gate is not None:
            return fail(self._gate)
        self._saved()
        return succeed(None)

    def openContent(self) -> Deferred[int]:
        if self._gate is not None:
            return fail(self._gate)
        size = self.held.end if self.offer.size is None else self.offer.size
        if not self.held.covers(0, size):
            return fail(StoreError(f'"{self.offer.name}" is not complete'))
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.content[:size])
            file.flush()
            return succeed(os.open(file.name, os.O_RDONLY | os.O_CLOEXEC))

    def suspend(self) -> Deferred[None]:
        if self.offer.resumeKey is None:
            return self.abort()
        if self._gate is None:
            self._saved()
            self._gate = StoreError(f'"{self.offer.name}" is suspended')
        self._letGo()
        return succeed(None)

    def commit(self, root: bytes | None) -> Deferred[Receipt]:
        if self._gate is not None:
            return fail(self._gate)
        size = self.held.end if self.offer.size is None else self.offer.size
        if not self.held.covers(0, size):
            return fail(StoreError(f'"{self.offer.name}" is not complete'))
        self._gate = StoreError(f'"{self.offer.name}" was published')
        content = bytes(self.content[:size])
        try:
            name, status = self._store._place(self.offer, lambda there: there == content)
        except TransferError as error:
            if isinstance(error, NoSpace):
                self._gate = None
            return fail(error)
        self._forget()
        return succeed(self._store._publish(self.offer, name, status, content, root))

    def abort(self) -> Deferred[None]:
        if not isinstance(self._gate, ConflictTakeover):
            self._gate = StoreError(f'"{self.offer.name}" was aborted')
            self._forget()
        return succeed(None)

    def _saved(self) -> None:
        for start, end in self.held:
            self.durable.add(start, end)

    def _letGo(self) -> None:
        if self._tenure is not None:
            self._tenure.release()

    def _forget(self) -> None:
        self._letGo()
        if self._store._partials.get(self.partialId) is self:
            del self._store._partials[self.partialId]
            self._store._used -= len(self.content)


@implementer(IFileStore, IDirectoryStore, IInspectableStore, IReadableStore)
@implementer(ISparseStore, IUpdateStore)
class MemoryStore:
    """
    A store in dictionaries: no reactor, no threads, no disk.

    @ivar files: path to content of everything published.
    @ivar directories: path of every directory to its modification time, nanoseconds since
        the epoch; L{None} if no sender told it.
    @param capacity: bytes it holds before it says L{NoSpace}; L{None} for no
        limit, so that a sender decides how much memory it takes: a file takes that of its
        holes, too.
    @param names: one of C{PROFILES}: with C{portable} a name is taken if
        another one in its directory differs only in case or composition;
        C{posix} keeps them apart.
    """

    def __init__(
        self,
        *,
        capacity: int | None = MEMORY_CAPACITY_BYTES,
        names: str = "portable",
        now: Callable[[], float] = time.time,
    ) -> None:
        self.files: dict[str, bytes] = {}
        self.keptSeconds: float | None = None
        self._modified: dict[str, int] = {}
        self.directories: dict[str, int | None] = {}
        self._portable = names == "portable"
        #: caseless form to path
        self._forms: dict[str, str] = {}
        self._capacity = capacity
        self._used = 0
        self._now = now
        self._partials: dict[str, _MemoryPartial] = {}
        self._takeovers = Takeovers()
        #: the newest last
        self._receipts: dict[tuple[str, bytes], list[Receipt]] = {}
        #: the last one for each name
        self._latest: dict[str, Receipt] = {}

    def open(
        self, offer: Offer, holder: IPartialHolder | None = None
    ) -> Deferred[IPartial | Receipt]:
        return Deferred.fromCoroutine(self._open(offer, holder))

    async def _open(self, offer: Offer, holder: IPartialHolder | None) -> IPartial | Receipt:
        if offer.resumeKey is None:
            if holder is not None:
                await holder.ready()
            return self._openInTenure(offer, secrets.token_hex(16), None)
        partialId = _partialIdOf(offer.principal, offer.network, offer.resumeKey)
        tenure = await self._takeovers.take(partialId, holder)
        try:
            opened = self._openInTenure(offer, partialId, tenure)
        except BaseException:
            tenure.release()
            raise
        if isinstance(opened, Receipt):
            tenure.release()
        return opened

    def _openInTenure(
        self, offer: Offer, partialId: str, tenure: Tenure | None
    ) -> _MemoryPartial | Receipt:
        done = self._finished(offer, offer.size)
        if done is not None:
            return done
        partial = _MemoryPartial(self, offer, partialId, tenure)
        older = self._partials.get(partialId)
        if older is not None and continues(offer, older.offer):
            partial.takeOver(older)
        elif older is not None:
            older.abort()
        self._fits(offer, partial.content)
        self._partials[partialId] = partial
        return partial

    def find(
        self, principal: str, resumeKey: bytes, key: bytes, network: str = ""
    ) -> Deferred[Offer | Receipt | None]:
        receipts = self._receipts.get((principal, key))
        if receipts:
            return succeed(receipts[-1])
        partial = self._partials.get(_partialIdOf(principal, network, resumeKey))
        return succeed(None if partial is None or partial.offer.key != key else partial.offer)

    def put(self, offer: Offer, data: bytes, root: bytes | None) -> Receipt:
        done = self._finished(offer, len(data), root)
        if done is not None:
            return done
        name, status = self._place(offer, lambda there: there == data)
        return self._publish(offer, name, status, bytes(data), root)

    def makeDirectory(
        self, name: RelativeName, modified: int | None, durability: str, make: bool = True
    ) -> Deferred[DirectoryMade | None]:
        try:
            paths = self._verifyDirectories(name.components)
        except Exists as error:
            return fail(error)
        made = name.path not in self.directories
        if made and not make:
            return succeed(None)
        for path in paths:
            self.directories.setdefault(path)
        if self._portable:
            self._forms.update((caselessForm(path), path) for path in paths)
        if modified is not None:
            self.directories[name.path] = modified
        return succeed(DirectoryMade(made, "none", "memory", self._now()))

    def trouble(self) -> str | None:
        return None

    def stat(self, name: RelativeName) -> Deferred[FileStat | None]:
        content = self.files.get(name.path)
        if content is None:
            return succeed(None)
        return succeed(FileStat(len(content), self._modified[name.path]))

    def listing(self, directory: RelativeName | None, after: str, limit: int) -> Deferred[Listing]:
        prefix = "" if directory is None else f"{directory.path}/"
        found: dict[str, ListedEntry] = {}
        for path, modified in self.directories.items():
            _note(found, prefix, path, 0, modified or 0, directory=True)
        for path, content in self.files.items():
            modified = self._modified.get(path, 0)
            _note(found, prefix, path, len(content), modified, directory=False)
        if directory is not None and not found and directory.path not in self.directories:
            return fail(notFound(directory))
        names = sorted((each for each in found if each.encode() > after.encode()), key=str.encode)
        return succeed(Listing(tuple(found[each] for each in names[:limit]), len(names) > limit))

    def read(self, name: RelativeName, start: int, end: int) -> Deferred[FileRange]:
        content = self.files.get(name.path)
        if content is None:
            return fail(notFound(name))
        modified = self._modified.get(name.path, 0)
        version = hashlib.blake2b(repr((hash(content), modified)).encode(), digest_size=16).digest()
        data = content[start : min(end, start + MAX_READ_BYTES)]
        return succeed(FileRange(data, len(content), modified, version))

    def foresee(self, offer: Offer, root: bytes | None, ahead: int, whole: bool) -> Deferred[str]:
        size = offer.size or 0
        if self._capacity is not None and self._used + ahead + size > self._capacity:
            return fail(_full(offer.name))

        def same(content: bytes) -> bool:
            if offer.size not in {None, len(content)}:
                return False
            if root is None or offer.size is None or offer.digest is None:
                return True
            digest, step = digestNamed(offer.digest), offer.blockSize
            blocks = [digest.of(content[at : at + step]) for at in range(0, size, step)]
            return rootOf(digest, size, step, blocks) == root

        try:
            _, status = self._place(offer, same)
        except TransferError as error:
            return fail(error)
        if status == "duplicate" and root is None and offer.ifExists != "rename":
            status = "compare"
        return succeed(status)

    def compare(self, principal: str, files: Sequence[AskedFile], digest: str) -> Deferred[bytes]:
        return succeed(bytes(self._compare(principal, file, digestNamed(digest)) for file in files))

    def _compare(self, principal: str, file: AskedFile, digest: Digest) -> int:
        receipt = None if file.name is None else self._latest.get(file.name.path)
        if file.name is None or receipt is None or receipt.principal != principal:
            return UNTOLD
        content = self.files.get(file.name.path)
        if content is None or len(content) != file.size:
            return DIFFERS
        if not file.root:
            return SAME if self._modified[file.name.path] == file.modified else DIFFERS
        step = chooseBlockSize(file.size)
        blocks = [digest.of(content[at : at + step]) for at in range(0, file.size, step)]
        return SAME if rootOf(digest, file.size, step, blocks) == file.root else DIFFERS

    def partials(self, principal: str | None = None) -> Deferred[list[PartialInfo]]:
        return succeed(
            [
                PartialInfo(
                    partialId=partialId,
                    principal=partial.offer.principal,
                    name=partial.offer.name.path,
                    size=partial.offer.size,
                    received=partial.held.total,
                    allocated=len(partial.content),
                    active=partial.writable,
                    changed=partial.changed,
                )
                for partialId, partial in self._partials.items()
                if principal in {None, partial.offer.principal}
            ]
        )

    def delete(self, info: PartialInfo) -> Deferred[None]:
        partial = self._partials.get(info.partialId)
        if partial is not None and not partial.writable:
            partial._forget()
        return succeed(None)

    def close(self) -> Deferred[None]:
        for partial in list(self._partials.values()):
            partial.suspend()
        return succeed(None)

    def _finished(
        self, offer: Offer, size: int | None, root: bytes | None = None
    ) -> Receipt | None:
        if offer.key is None:
            return None
        receipts = self._receipts.get((offer.principal, offer.key), ())
        return next((each for each in reversed(receipts) if each.answers(size, root)), None)

    def _fits(self, offer: Offer, content: bytearray) -> None:
        missing = (offer.size or 0) - len(content)
        if self._capacity is not None and missing > self._capacity - self._used:
            raise _full(offer.name)

    def _take(self, size: int) -> None:
        if size > 0:
            if self._capacity is not None and self._used + size > self._capacity:
                raise NoSpace("the receiver's memory is full; try again when there is space")
            self._used += size

    def _publish(
        self, offer: Offer, name: RelativeName, status: str, content: bytes, root: bytes | None
    ) -> Receipt:
        now = self._now()
        published = Published(name, status)
        receipt = receiptOf(offer, published, len(content), root, "none", "memory", now)
        if status == "stored":
            self._used -= len(self.files.get(name.path, b""))
            self._take(len(content))
            self.files[name.path] = content
            paths = ["/".join(name.components[:end]) for end in range(1, len(name.components))]
            for path in paths:
                self.directories.setdefault(path)
            if self._portable:
                self._forms.update((caselessForm(path), path) for path in (*paths, name.path))
            self._modified[name.path] = int(now * 1e9) if offer.modified is None else offer.modified
        if offer.key is not None or status == "stored":
            self._latest[name.path] = receipt
        if offer.key is not None:
            self._receipts.setdefault((offer.principal, offer.key), []).append(receipt)
        return receipt

    def _place(self, offer: Offer, same: Callable[[bytes], bool]) -> tuple[RelativeName, str]:
        self._verifyDirectories(offer.name.components[:-1])
        why = isTaken(offer)
        for candidate in candidates(offer):
            if candidate.path in self.directories:
                if offer.ifExists == "replace":
                    raise Exists(f'"{candidate}" is a directory on the receiver')
                continue
            neighbour = self._neighbour(candidate.path)
            if neighbour is not None:
                if candidate is offer.name:
                    why = neighbour
            elif candidate.path not in self.files or offer.ifExists == "replace":
                return candidate, "stored"
            elif same(self.files[candidate.path]):
                return candidate, "duplicate"
        raise why

    def _verifyDirectories(self, components: tuple[str, ...]) -> list[str]:
        """
        Check the way to a directory.

        @return: the paths from the root to the directory C{components}.
        @raise Exists: if something else is in the way, or a neighbour of one of them.
        """
        paths = ["/".join(components[:depth]) for depth in range(1, len(components) + 1)]
        for path in paths:
            if path in self.files:
                part = displayName(path.rpartition("/")[2])
                raise Exists(f'"{part}" is not a directory on the receiver')
            neighbour = self._neighbour(path)
            if neighbour is not None:
                raise neighbour
        return paths

    def _neighbour(self, path: str) -> Exists | None:
        """
        Tell why nothing can be made at C{path}, if a neighbour is there.
        """
        other = self._forms.get(caselessForm(path), path)
        if other == path or self._isThere(path) or not self._isThere(other):
            return None
        return neighbourExists(path.rpartition("/")[2], other.rpartition("/")[2])

    def _isThere(self, path: str) -> bool:
        return path in self.files or path in self.directories


def _partialIdOf(principal: str, network: str, resumeKey: bytes) -> str:
    return f"{principal}\0{network}\0{hashlib.sha256(resumeKey).hexdigest()}"


def _full(name: RelativeName) -> NoSpace:
    return NoSpace(f'"{name}": the receiver\'s memory is full')


def _note(
    found: dict[str, ListedEntry],
    prefix: str,
    path: str,
    size: int,
    modified: int,
    *,
    directory: bool,
) -> None:
    """
    Note the name that C{path} has directly below C{prefix}.
    """
    if not path.startswith(prefix) or path == prefix:
        return
    name, deeper, _ = path[len(prefix) :].partition("/")
    if not deeper:
        found[name] = ListedEntry(name, directory, size, modified)
    else:
        found.setdefault(name, ListedEntry(name, True, 0, 0))
