"""
Removing (or moving) sources that the receiver has.

Theory of operation
===================
A source goes only if the receiver has the very content that it has in the end:

  1. It is renamed into a private directory, where no program that knows its
     old name finds it.  A list of what was taken, with the roots of the
     receipts, is durable before.
  2. Nobody may write to it any more (L{connpool.transfer.send.openfiles}).
     A program that still has it open or mapped keeps it here.
  3. It is read again, and its root must be the receipt's.  Times say nothing:
     a mapping changes content without them.

Otherwise it is put back under its name, or beside it if the name is taken.
After a crash or an error the next scan goes on at step 2.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence

import attrs

from connpool.errors import StoreError, TransferError, Unsupported
from connpool.transfer.digests import Digest, chooseBlockSize, digestNamed, rootOf
from connpool.transfer.holes import MAX_HOLE_BLOCK_BYTES, isHole, zeroDigest
from connpool.transfer.names import displayName
from connpool.transfer.records import Receipt
from connpool.transfer.send.freenames import putBack, syncDirectory
from connpool.transfer.send.keeping import Keeping
from connpool.transfer.send.openfiles import Answer, Writers, writersOf
from connpool.transfer.send.source import FileVersion, versionOf

__all__ = ["Departure", "Fate", "NotDurable", "Removal", "Sent", "contentRoot", "doubt"]

#: The list in a place: path, size, digest and root of files C{0}, C{1}, …
NAMES = "names"

#: Files that are taken at once, whose list is synced, and those that are open at once.
_PLACE_FILES, _BATCH_FILES = 1024, 128

#: What a receipt says of a file that is there.
_THERE = frozenset({"stored", "duplicate"})

_READ_BYTES = 1 << 20
#: Reading so much is soon done, also when somebody waits for the end.
_LONG_BYTES = 64 << 20

_PRIVATE_MODE = 0o700

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Fate(enum.Enum):
    """
    The end of a source.
    """

    GONE = "gone"
    CHANGED = "changed"  #: somebody wrote to it, or has it open for that
    UNSURE = "unsure"  #: nobody knows whether somebody has
    LATER = "later"  #: the next scan goes on with it
    FAILED = "failed"


@attrs.frozen
class Departure:
    """
    @ivar error: why it L{Fate.FAILED}.
    @ivar version: of the source that stays in the folder, if it L{Fate.FAILED} or
        that is L{Fate.UNSURE}.
    """

    fate: Fate
    error: OSError | None = None
    version: FileVersion | None = None


@attrs.frozen
class Sent:
    """
    A source whose receipt is good.

    @ivar path: in the folder.
    @ivar version: when it was seen last.
    @ivar size: bytes that the receiver has.
    @ivar digest: name of the algorithm of its C{root}.
    """

    path: str
    version: FileVersion
    size: int
    digest: str
    root: bytes


class NotDurable(StoreError):
    """
    The receiver stores, but not so that a source may go.
    """


def doubt(receipt: Receipt | None) -> TransferError | None:
    """
    @return: why the source of such a receipt must stay and go again; L{None} if
        it may be removed.
    """
    if receipt is None:
        return TransferError("there is no receipt")
    if receipt.durability != "full":
        return NotDurable(
            f"the receiver stores on {displayName(receipt.filesystem)} at the level "
            f'"{receipt.durability}", and sources are removed at "full" only; give it a '
            "directory on a disk"
        )
    if receipt.status not in _THERE:
        return TransferError(f"the receiver says {displayName(receipt.status)}")
    if receipt.integrity != "verified" or not receipt.root or not receipt.digest:
        return TransferError("the receiver did not verify what it stored")
    return None


def contentRoot(
    fd: int, size: int, digest: Digest, wanted: Callable[[], bool] = lambda: True
) -> bytes | None:
    """
    Read the first C{size} bytes of a file.

    @param wanted: asked now and then while a large file is read.
    @return: the root of its content; L{None} if that is not wanted any more, or
        the file is shorter.
    """
    blockSize = chooseBlockSize(size)
    blocks = []
    for block in range(0, size, blockSize):
        hasher = digest.new()
        at, end = block, min(block + blockSize, size)
        if end - at == blockSize <= MAX_HOLE_BLOCK_BYTES and isHole(fd, at, end):
            if os.fstat(fd).st_size < end or (at >= _LONG_BYTES and not wanted()):
                return None
            blocks.append(zeroDigest(digest, blockSize))
            continue
        while at < end:
            data = os.pread(fd, min(end - at, _READ_BYTES), at)
            if not data or (at >= _LONG_BYTES and not wanted()):
                return None
            hasher.update(data)
            at += len(data)
        blocks.append(hasher.digest())
    return rootOf(digest, size, blockSize, blocks)


def _writersOf(paths: Sequence[str]) -> Iterator[Answer | OSError]:
    """
    Find the writers of many files, a part at a time: just before each is decided.
    """
    for at in range(0, len(paths), _BATCH_FILES):
        yield from writersOf(paths[at : at + _BATCH_FILES])


def _token(taken: str) -> str:
    """
    Make the name of a source that is taken, the same after a crash.
    """
    place, number = os.path.split(taken)
    return f"{os.path.basename(place)}-{number}"


@attrs.define(eq=False, repr=False, slots=False)
class Removal:
    """
    The removal of sources.

    @param folder: where the sources are.
    @param taken: our own directory on the same file system.
    @param keep: where sources are moved instead of being removed; L{None} to remove them.
    @param trustSettled: whether a file may go whose writers nobody knows.
    @param keepDirectories: whether directories stay that are empty then.
    """

    _folder: str
    _taken: str
    _keep: Keeping | None = None
    _trustSettled: bool = attrs.field(default=False, kw_only=True)
    _keepDirectories: bool = attrs.field(default=False, kw_only=True)
    _interrupted: bool = attrs.field(default=False, init=False)

    def interrupt(self) -> None:
        """
        Come to an end soon: what is taken waits for the next start.
        """
        self._interrupted = True

    def mayGo(self, answer: Answer) -> bool:
        """
        Tell whether a file with such writers may be removed once it was sent.
        """
        return answer.writers is Writers.NONE or (
            answer.writers is Writers.UNKNOWN and self._trustSettled
        )

    def contentOf(self, path: str) -> bytes | None:
        """
        @return: a root of a file's content now, to compare with one of a later
            time; L{None} if it cannot be read, or not now.
        """
        try:
            fd = os.open(path, _READ)
        except OSError:
            return None
        try:
            size = os.fstat(fd).st_size
            return contentRoot(fd, size, digestNamed("blake3"), lambda: not self._interrupted)
        except OSError:
            return None
        finally:
            os.close(fd)

    def remove(self, sent: Sequence[Sent]) -> dict[str, Departure]:
        """
        Remove sources; in a thread, one at a time.

        @return: what became of each, by its path.
        """
        fates: dict[str, Departure] = {}
        for at in range(0, len(sent), _PLACE_FILES):
            self._remove(sent[at : at + _PLACE_FILES], fates)
        return fates

    def _remove(self, sent: Sequence[Sent], fates: dict[str, Departure]) -> None:
        # whatever may keep it is looked for before it is taken: put back it is
        # another file, and is sent again
        going = []
        answers = _writersOf([os.path.join(self._folder, each.path) for each in sent])
        for each, answer in zip(sent, answers, strict=True):
            source = os.path.join(self._folder, each.path)
            try:
                if isinstance(answer, OSError):
                    raise answer
                if versionOf(os.lstat(source)) != each.version:
                    fates[each.path] = Departure(Fate.CHANGED)
                elif not self.mayGo(answer):
                    fates[each.path] = self._stays(each.path, answer)
                else:
                    if self._keep is not None:
                        self._keep.prepare(each.path)
                    going.append(each)
            except FileNotFoundError:
                fates[each.path] = Departure(Fate.GONE)
            except OSError as e:
                fates[each.path] = self._failed(each.path, e)
        if not going:
            return
        place = os.path.join(self._taken, secrets.token_hex(8))
        try:
            os.mkdir(place, _PRIVATE_MODE)
            self._note(place, going)
        except OSError as e:
            with contextlib.suppress(OSError):
                self._clear(place)
            fates.update((each.path, self._failed(each.path, e)) for each in going)
            return
        for number, each in enumerate(going):
            try:
                os.rename(os.path.join(self._folder, each.path), os.path.join(place, str(number)))
            except FileNotFoundError:
                fates[each.path] = Departure(Fate.GONE)
            except OSError as e:
                fates[each.path] = self._failed(each.path, e)
        try:
            self._finish(place, going, fates)
        except OSError as e:
            for each in going:
                if each.path not in fates:
                    fates[each.path] = self._failed(each.path, e)

    @staticmethod
    def _note(place: str, going: Iterable[Sent]) -> None:
        rows = [[each.path, each.size, each.digest, each.root.hex()] for each in going]
        with open(os.path.join(place, NAMES), "x", encoding="utf-8") as file:
            file.write(json.dumps(rows))  # much faster than dump()
            file.flush()
            os.fsync(file.fileno())
        syncDirectory(place)

    def _failed(self, path: str, error: OSError) -> Departure:
        return Departure(Fate.FAILED, error, self._version(path))

    def _stays(self, path: str, answer: Answer) -> Departure:
        if answer.writers is Writers.UNKNOWN:
            return Departure(Fate.UNSURE, version=self._version(path))
        return Departure(Fate.CHANGED)

    def _version(self, path: str) -> FileVersion | None:
        try:
            return versionOf(os.lstat(os.path.join(self._folder, path)))
        except OSError:
            return None

    # -- what was taken

    def recover(self, place: str) -> list[str]:
        """
        Go on with what was taken and got no further.

        @return: paths of what is gone now.
        @raise OSError: its list cannot be read.
        """
        with open(os.path.join(place, NAMES), encoding="utf-8") as file:
            text = file.read()
        try:
            sent = [
                Sent(str(path), (), int(size), str(digest), bytes.fromhex(root))
                for path, size, digest, root in json.loads(text)
            ]
        except (ValueError, TypeError):
            sent = []  # it was never durable, so nothing was taken with it
        for number, each in enumerate(sent):
            source = os.path.join(place, str(number))
            if self._keep is not None and not os.path.lexists(source):
                self._keep.sweep(each.path, _token(source))
        fates: dict[str, Departure] = {}
        self._finish(place, sent, fates)
        return [path for path, departure in fates.items() if departure.fate is Fate.GONE]

    def _finish(self, place: str, sent: Sequence[Sent], fates: dict[str, Departure]) -> None:
        """
        Remove what may go, and put back the rest.
        """
        there = sorted(int(name) for name in os.listdir(place) if name.isdecimal())
        emptied = set()
        files = [os.path.join(place, str(number)) for number in there]
        for number, file, answer in zip(there, files, _writersOf(files), strict=True):
            if number < len(sent):
                each = sent[number]
                fates[each.path] = departure = self._judge(file, each, answer)
                if departure.fate is Fate.GONE:
                    emptied.add(os.path.dirname(each.path))
            else:
                putBack(file, self._folder, f"recovered-{os.path.basename(place)}-{number}")
        self._clear(place)
        if not self._keepDirectories:
            self._prune(emptied)

    def _judge(self, file: str, sent: Sent, answer: Answer | OSError) -> Departure:
        try:
            if isinstance(answer, OSError):
                raise answer
            if not self.mayGo(answer):
                putBack(file, self._folder, sent.path)
                return self._stays(sent.path, answer)
            same = self._isWhatWasSent(file, sent)
            if same is None:
                return Departure(Fate.LATER)
            if not same:
                putBack(file, self._folder, sent.path)
                return Departure(Fate.CHANGED)
            if self._keep is None:
                os.unlink(file)
            elif not self._keep.move(
                file,
                sent.path,
                _token(file),
                lambda copy: self._isWhatWasSent(copy, sent),
                lambda: not self._interrupted,
            ):
                return Departure(Fate.LATER)
            return Departure(Fate.GONE)
        except OSError as e:
            with contextlib.suppress(OSError):  # the next scan does it
                putBack(file, self._folder, sent.path)
            return self._failed(sent.path, e)

    def _isWhatWasSent(self, file: str, sent: Sent) -> bool | None:
        """
        @return: L{None} if there was no time to find out.
        """
        try:
            digest = digestNamed(sent.digest)
        except Unsupported:
            return False
        fd = os.open(file, _READ)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode) or before.st_size != sent.size:
                return False
            root = contentRoot(fd, sent.size, digest, lambda: not self._interrupted)
            if root is None and self._interrupted:
                return None
            return root == sent.root and versionOf(os.fstat(fd)) == versionOf(before)
        finally:
            os.close(fd)

    @staticmethod
    def _clear(place: str) -> None:
        """
        Remove a place that has nothing but its list.
        """
        if set(os.listdir(place)) <= {NAMES}:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(place, NAMES))
            os.rmdir(place)

    def _prune(self, directories: Iterable[str]) -> None:
        for path in directories:
            while path:
                try:
                    os.rmdir(os.path.join(self._folder, path))
                except OSError:
                    break  # not empty, or gone
                path = os.path.dirname(path)  # noqa: PLW2901 - upwards
