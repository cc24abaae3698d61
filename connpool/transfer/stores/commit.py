"""
From the last byte to the receipt.

Theory of operation
===================
A file is a batch of one.  A batch takes these steps, in this order: write, unless there
is a receipt; find or make the directory; what it hands down, mode and time; sync the
descriptor that wrote; note that publishing begins; publish; sync the directories; done
records; unlink the private names; acknowledge.  Directories, their syncs and the write of
the done records are shared, and a step is taken with several files before the next one: the
code of each, ours and the kernel's, is in the processor's cache then.  A name never precedes
its synced data, an acknowledgement never precedes anything it promises, and the private name
goes last because it is the evidence: a private file with two links was published,
whoever died or failed in between.  Once the done record is written nothing can
fail any more.  A file that fails does so alone.

C{none} leaves out the syncs, C{data} those of directories.  What is reached
depends on where the name is: a file system in memory may be mounted there, or a
disk in a store that is in memory.

Everything here may block on the disk and may run in any thread.
"""

from __future__ import annotations

import math
import secrets
import stat
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic, perf_counter
from typing import Any, Self, TypeVar, TypeVarTuple

import attrs
from twisted.python.failure import Failure

from connpool.errors import TransferError
from connpool.transfer.records import DURABILITIES, Offer, Receipt, SmallFile
from connpool.transfer.stores.directories import (
    LOOK_SECONDS,
    NOTHING_HANDED_DOWN,
    Directories,
    Directory,
)
from connpool.transfer.stores.publish import (
    TEMPORARY,
    Published,
    Publisher,
    Source,
    inherit,
    receiptOf,
    temporaryName,
)
from connpool.transfer.stores.receiptlog import ReceiptLog
from connpool.transfer.stores.syncing import BatchSync
from connpool.transfer.syscalls import (
    EXISTING,
    NEW,
    VOLATILE,
    Syscalls,
    asTransferError,
)

__all__ = ["PASS_FILES", "Commit", "receiptOr"]

#: Durability that is asked for to its index in C{DURABILITIES}; the strongest for C{best}.
_WANTED = {"none": 0, "data": 1, "full": 2, "best": 2}

#: Files of a batch that are written before the first of them gets its name.
PASS_FILES = 32

T = TypeVar("T")
_Ts = TypeVarTuple("_Ts")
Data = bytes | memoryview


@attrs.define(eq=False)
class _Item:
    """
    One file on its way through the steps.

    @ivar level: index in C{DURABILITIES}: asked for and reachable, then what was reached.
    @ivar data: of a small file, which is still to be written.
    @ivar known: whether there may be a receipt for it.
    @ivar source: the private file, once it is written.
    @ivar committing: notes that publishing begins, and syncs the note.
    @ivar directory: the one whose gifts it has, and where its name is in the end.
    @ivar outcome: its receipt, or why there is none.
    """

    offer: Offer
    root: bytes | None
    level: int
    data: Data = b""
    known: bool = False
    source: Source | None = None
    committing: Callable[[], None] | None = None
    directory: Directory | None = None
    published: Published | None = None
    outcome: Receipt | Failure | None = None


class _Held:
    """
    The directories that a batch uses, held until it is over.

    @ivar granted: by the mode that files are made with, the one that they had.
    """

    def __init__(self) -> None:
        self.granted: dict[int, int] = {}
        #: of both trees: nothing that is published begins as what is private does
        self._latest: dict[tuple[str, ...], Directory] = {}
        self._all: list[tuple[Directories, Directory]] = []

    def enter(
        self,
        tree: Directories,
        components: tuple[str, ...],
        use: Callable[[Directory, *_Ts], T],
        *arguments: *_Ts,
    ) -> T:
        """
        As L{Directories.enter}, but keep the directory for the files that follow.
        """
        directory = self._latest.get(components)
        if directory is not None and monotonic() - directory.looked < LOOK_SECONDS:
            try:
                return use(directory, *arguments)
            except FileNotFoundError:
                tree.forget(directory)
        result, directory = tree.enter(components, use, *arguments)
        self._latest[components] = directory
        self._all.append((tree, directory))
        return result

    def filesystem(self, components: tuple[str, ...]) -> str | None:
        """
        Return the type of the one that a directory was found on, if it was.
        """
        directory = self._latest.get(components)
        return None if directory is None else directory.filesystem

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        for tree, directory in self._all:
            tree.release(directory)


class Commit:
    """
    The steps from the last byte to the receipt.

    @param directories: the published directories.
    @param private: the private directories.
    @param reach: index in C{DURABILITIES} of the strongest level there is on
        the file system of the private files.
    @param fileMode: permission bits of published files, whatever the umask.
    @param keepExec: give the source's exec bit where C{fileMode} can read.
    @param now: wall-clock seconds.
    """

    def __init__(
        self,
        syscalls: Syscalls,
        directories: Directories,
        private: Directories,
        publisher: Publisher,
        receiptLog: ReceiptLog,
        sync: BatchSync,
        *,
        reach: int,
        fileMode: int,
        keepExec: bool,
        now: Callable[[], float],
    ) -> None:
        self._sys = syscalls
        self._directories = directories
        self._private = private
        self._publisher = publisher
        self._receiptLog = receiptLog
        self._reach = reach
        #: whether a name was published on a disk although the private files are in memory
        self._diskElsewhere = False
        #: of files without and with an exec bit
        self._modes = fileMode, fileMode | ((fileMode & 0o444) >> 2 if keepExec else 0)
        self._now = now
        self._sync = sync

    def level(self, offer: Offer) -> int:
        """
        Return the index in C{DURABILITIES} that is asked for and reachable.
        """
        wanted = _WANTED[offer.durability]
        return wanted if wanted <= self._reach or self._diskElsewhere else self._reach

    def reached(self, durability: str, directory: Directory) -> int:
        """
        Return the index in C{DURABILITIES} that is asked for and reachable in C{directory}.
        """
        if directory.filesystem in VOLATILE:
            return 0
        if self._reach:
            return min(_WANTED[durability], self._reach)
        # another mount: a copy is synced there
        self._diskElsewhere = True
        return _WANTED[durability]

    def finished(self, offer: Offer, size: int | None, root: bytes | None = None) -> Receipt | None:
        """
        Find the receipt that this offer's key has already for this content.

        @param size: bytes of the content; L{None} if that is not known.
        @param root: of the content that came; L{None} if that is not known yet.
        """
        if offer.key is None:
            return None
        try:
            return self._receiptLog.find(offer, size, root, sync=_WANTED[offer.durability] == 2)
        except OSError as error:
            raise self._translated(error, f'looking for the receipt of "{offer.name}"') from None

    def latest(self, offer: Offer) -> Receipt | None:
        """
        Find the last receipt that this offer's key has, whatever its content is.
        """
        try:
            receipt = self._receiptLog.find(offer, None, latest=True)
            if receipt is not None and receipt.durability == "full":
                # its process may have died before it had synced that
                receipt = self._receiptLog.find(offer, None, sync=True, latest=True)
            return receipt
        except OSError as error:
            raise self._translated(error, "looking for a receipt") from None

    def one(
        self,
        offer: Offer,
        source: Source,
        root: bytes | None,
        committing: Callable[[], None] | None = None,
    ) -> Receipt:
        """
        Publish one file that was written already.

        @param committing: notes that publishing begins, and syncs the note.
        @raise TransferError: as L{IPartial.commit} fails; C{source} says what
            became of the private file.
        """
        item = _Item(offer, root, self.level(offer), source=source, committing=committing)
        with _Held() as held:
            self._inEach([item], held, self._dress)
            self._publish([item], held)
            if isinstance(item.outcome, Receipt):
                self._publisher.discard(source)
        assert item.outcome is not None
        return receiptOr(item.outcome)

    def wasRenamed(self, offer: Offer, size: int, root: bytes | None) -> Receipt:
        """
        A process died after C{rename} had taken the private name away: take
        the steps that were left.
        """
        gone = Source(-1, -1, "", size, moved=True)
        item = _Item(offer, root, self.level(offer), source=gone)
        item.published = Published(offer.name, "stored")
        with _Held() as held:
            try:
                held.enter(
                    self._directories,
                    offer.name.components[:-1],
                    partial(setattr, item, "directory"),
                )
            except OSError as error:
                raise self._translated(error, f'storing "{offer.name}"') from None
            assert item.directory is not None
            item.level = self.reached(offer.durability, item.directory)
            self._settle([item])
        assert item.outcome is not None
        return receiptOr(item.outcome)

    def batch(self, files: Sequence[SmallFile], until: float = math.inf) -> list[Receipt | Failure]:
        """
        Store whole small files, which share their syncs and one write of receipts.

        @param until: the time of L{time.perf_counter} from which on no file is begun.
        @return: for each its receipt, or why not; shorter than C{files} if the time was up.
        """
        items, answers = self._begin(files)
        left = deque(items)
        with _Held() as held:
            try:
                write = partial(self._writeIn, held.granted)
                while left and perf_counter() < until:
                    before = len(left)
                    self._some(self._private, TEMPORARY, None, left, held, write)
                    begun = items[len(items) - before : len(items) - len(left)]
                    begun = [item for item in begun if item.outcome is None]
                    self._inEach([item for item in begun if item.level], held, self._dress)
                    quick = [item for item in begun if not item.level]
                    self._name(quick, held)
                    for item in quick:
                        if item.source is not None and item.source.fresh:
                            self._close(item.source)  # many descriptors would be open at once
                self._publish(items[: len(items) - len(left)], held)
            finally:
                for item in items:
                    self._tidyUp(item)
        if left:
            answers = answers[: answers.index(left[0])]
        return [item.outcome for item in answers if item.outcome is not None]

    # -- the steps

    def _mayKnow(self, files: Sequence[SmallFile]) -> list[bool]:
        """
        Tell for each file whether to look for its receipt.
        """
        try:
            return self._receiptLog.mayKnow(file.offer for file in files)
        except OSError:
            return [True] * len(files)  # each finds out for itself

    def _begin(self, files: Sequence[SmallFile]) -> tuple[list[_Item], list[_Item]]:
        """
        Return the files that are to be stored, and for each file that came the one of these
        that answers for it: a file may come twice.
        """
        items: list[_Item] = []
        answers: list[_Item] = []
        levels: dict[str, int] = {}
        #: by what makes two of them the same
        alike: dict[Any, _Item] = {}
        twice = len({file.offer.key for file in files}) < len(files)
        for file, known in zip(files, self._mayKnow(files), strict=True):
            offer = file.offer
            level = levels.get(offer.durability)
            if level is None:
                level = levels[offer.durability] = self.level(offer)
            item = new = _Item(offer, file.root, level, file.data, known)
            if twice and offer.key is not None:
                same = (offer.key, offer.principal, file.root, len(file.data))
                item = alike.setdefault(same, new)
            answers.append(item)
            if item is new:
                items.append(item)
        return items, answers

    def _inEach(
        self, items: Sequence[_Item], held: _Held, step: Callable[[Directory, _Item], object]
    ) -> None:
        """
        Take a step with each file, in the directory of its name, which is made if it is missing.
        """
        waiting = deque(items)
        while waiting:
            components = waiting[0].offer.name.components[:-1]
            self._some(self._directories, components, components, waiting, held, step)

    def _some(
        self,
        tree: Directories,
        components: tuple[str, ...],
        only: tuple[str, ...] | None,
        waiting: deque[_Item],
        held: _Held,
        step: Callable[[Directory, _Item], object],
    ) -> None:
        """
        Take a step with the first of some files, and those after it, as many as can do without
        another look at the directory.

        @param components: of the directory that the step is taken in.
        @param only: of the one that the names of these files are in; L{None} for any.
        """
        try:
            held.enter(tree, components, self._someIn, only, waiting, step)
        except (OSError, TransferError) as error:
            item = waiting.popleft()
            item.outcome = self._failure(error, item.offer)

    def _someIn(
        self,
        directory: Directory,
        only: tuple[str, ...] | None,
        waiting: deque[_Item],
        step: Callable[[Directory, _Item], object],
    ) -> None:
        """
        @raise FileNotFoundError: the directory has vanished, before anything was done in it.
        """
        for done in range(PASS_FILES):
            item = waiting[0]
            try:
                step(directory, item)
            except FileNotFoundError:
                if done:
                    return  # it is held for those that were here
                raise
            except (OSError, TransferError) as error:
                item.outcome = self._failure(error, item.offer)
            waiting.popleft()
            if not waiting or monotonic() - directory.looked >= LOOK_SECONDS:
                return
            if only is not None and waiting[0].offer.name.components[:-1] != only:
                return

    def _writeIn(self, granted: dict[int, int], directory: Directory, item: _Item) -> None:
        """
        Write a small file, unless there is a receipt for it or it has its name already.
        """
        offer, data = item.offer, item.data
        size = len(data)
        if item.known:
            item.outcome = self.finished(offer, size, item.root)
            if item.outcome is not None:
                return
        name, mode = temporaryName(offer), self._modes[offer.executable]
        try:
            fd = self._sys.open(name, NEW, mode, dir_fd=directory.fd)
        except FileExistsError:
            item.source = self._earlier(name, data, directory.fd)
            if item.source is not None:
                return
            name = secrets.token_hex(16)
            fd = self._sys.open(name, NEW, mode, dir_fd=directory.fd)
        try:
            if self._sys.pwrite(fd, data, 0) < size:
                self._sys.writeAll(fd, data, 0)
            if mode not in granted:
                # the umask is not asked for: doing so would change it for a moment
                granted[mode] = stat.S_IMODE(self._sys.fstat(fd).st_mode)
        except BaseException:
            self._sys.close(fd)
            self._sys.remove(name, directory.fd)
            raise
        item.source = Source(fd, directory.fd, name, size, granted[mode], False, True)

    def _earlier(self, name: str, data: Data, directory: int) -> Source | None:
        """
        Return what a process that died had published under this key, if that is C{data}.
        """
        fd = self._sys.openIfThere(name, EXISTING, directory)
        if fd is None:
            return None
        status = self._sys.fstat(fd)
        size = len(data)
        if status.st_nlink > 1 and status.st_size == size and self._sys.pread(fd, size, 0) == data:
            return Source(fd, directory, name, size, linked=True)
        self._sys.close(fd)
        return None

    def _publish(self, items: list[_Item], held: _Held) -> None:
        """
        Take all steps that are left, up to the done record.
        """
        waiting = [i for i in items if i.level and i.published is None and i.outcome is None]
        if waiting:
            self._syncAll(waiting, held)
        self._name(items, held)
        self._settle([item for item in items if item.outcome is None])

    def _syncAll(self, items: list[_Item], held: _Held) -> None:
        sources = [item.source for item in items if item.source is not None]
        # they lie on one file system, unless somebody mounted another meanwhile
        alike = len({source.directory for source in sources}) == 1
        filesystem = held.filesystem(TEMPORARY) if alike else None
        failures = self._sync.contents([source.fd for source in sources], filesystem)
        for item, failure in zip(items, failures, strict=True):
            if failure is not None:
                item.outcome = Failure(failure)

    def _name(self, items: Sequence[_Item], held: _Held) -> None:
        """
        Give those their names that have none yet.
        """
        waiting = [item for item in items if item.outcome is None and item.published is None]
        self._inEach(waiting, held, self._nameIn)

    def _nameIn(self, directory: Directory, item: _Item) -> None:
        source, offer = item.source, item.offer
        assert source is not None
        if item.directory is not directory:
            again = item.directory is not None  # that one has vanished
            self._dress(directory, item)
            if again and item.level:
                [failure] = self._sync.contents([source.fd])
                if failure is not None:
                    raise failure
        if item.committing is not None:
            item.committing()
        item.published = self._publisher.publish(source, directory, offer)
        item.level = self.reached(offer.durability, directory)

    def _settle(self, items: list[_Item]) -> None:
        """
        The directories and the done records: each once.
        """
        full = [item for item in items if item.level == 2]
        if full:
            self._syncNames(full)
        rest = [item for item in items if item.outcome is None]
        now = self._now()
        noted = [(item.offer, self._receipt(item, now)) for item in rest]
        failed: Failure | None = None
        try:
            self._receiptLog.append(noted, sync=any(item.level == 2 for item in rest))
        except OSError as error:
            failed = Failure(self._translated(error, "noting what was received"))
        for item, (_, receipt) in zip(rest, noted, strict=True):
            item.outcome = failed or receipt

    def _syncNames(self, items: list[_Item]) -> None:
        levels = self._sync.names({item.directory for item in items if item.directory is not None})
        for item in items:
            assert item.directory is not None
            level = levels[item.directory]
            if isinstance(level, OSError):
                item.outcome = Failure(self._translated(level, "making a directory durable"))
            else:
                item.level = level

    def _tidyUp(self, item: _Item) -> None:
        """
        Let go of a small file.  One that was published and not noted keeps its private
        name: that is the evidence.
        """
        source = item.source
        if source is None:
            return
        if not source.linked or isinstance(item.outcome, Receipt):
            self._publisher.discard(source)
        if source.fd >= 0:
            self._close(source)

    def _close(self, source: Source) -> None:
        fd, source.fd = source.fd, -1
        try:  # noqa: SIM105 - once a file: suppress() costs as much as the call
            self._sys.close(fd)
        except OSError:
            pass  # the descriptor is gone all the same, and what had to be synced was

    def _dress(self, directory: Directory, item: _Item) -> None:
        source, offer = item.source, item.offer
        assert source is not None
        mode = self._modes[offer.executable]
        handed = directory.inheritance or self._directories.inheritance(directory)
        if source.mode != mode or handed is not NOTHING_HANDED_DOWN:
            source.mode = mode
            source.apart = not inherit(self._sys, source.fd, handed, mode)
        if offer.modified is not None:
            # the kernel moves what its file system cannot hold to the nearest it can
            self._sys.utime(source.fd, ns=(offer.modified, offer.modified))
        item.directory = directory

    def _translated(self, error: OSError | TransferError, doing: str) -> TransferError:
        return asTransferError(error, doing, self._sys, self._directories.root)

    def _failure(self, error: OSError | TransferError, offer: Offer) -> Failure:
        return Failure(self._translated(error, f'storing "{offer.name}"'))

    def _receipt(self, item: _Item, now: float) -> Receipt:
        published, source, directory = item.published, item.source, item.directory
        assert published is not None
        assert source is not None
        assert directory is not None
        reached = DURABILITIES[item.level], directory.filesystem, now
        return receiptOf(item.offer, published, source.size, item.root, *reached)


def receiptOr(outcome: Receipt | Failure) -> Receipt:
    """
    Return a receipt, or raise what there is instead.
    """
    if isinstance(outcome, Failure):
        why: Any = outcome.value
        raise why
    return outcome
