"""
A list of the files that are sent.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import attrs

from connpool.errors import SourceError, WrongSetting
from connpool.transfer.send.walking import DIRECTORY, FILE, LINK, Found

__all__ = ["ListedFiles"]

#: Bytes of a list.
MAX_LIST_BYTES = 256 << 20


@attrs.frozen
class ListedFiles:
    """
    Files that a list names, each by its path below a directory; may be gone through more than
    once.  A directory of the list is made, with its time, and not looked into; a link is
    passed over.

    @ivar data: paths.
    @ivar separator: what ends each.
    @ivar base: the directory that they are below, and that relative ones begin at.
    """

    data: bytes = attrs.field(repr=False)
    separator: bytes = b"\n"
    base: str = "."

    @classmethod
    def read(cls, path: str | int, separator: bytes, base: str) -> ListedFiles:
        """
        @param path: of the list, or the descriptor that it comes from.
        @raise OSError: it cannot be read.
        @raise WrongSetting: it is too large.
        """
        with open(path, "rb", closefd=not isinstance(path, int)) as file:
            data = file.read(MAX_LIST_BYTES + 1)
        if len(data) > MAX_LIST_BYTES:
            raise WrongSetting(f"it has more than {MAX_LIST_BYTES >> 20} MiB; divide it")
        return cls(data, separator, base)

    def __iter__(self) -> Iterator[Found]:
        top = os.path.abspath(os.fsencode(self.base))
        at, length = 0, len(self.data)
        while at < length:
            end = self.data.find(self.separator, at)
            end = length if end < 0 else end
            raw, at = self.data[at:end], end + 1
            absolute = os.path.normpath(os.path.join(top, raw))
            # the directory itself, which find(1) lists first, has its name here only
            if absolute != top:
                yield self._found(raw, absolute, top)

    def _found(self, raw: bytes, absolute: bytes, top: bytes) -> Found:
        path = os.fsdecode(absolute)
        inside = os.path.relpath(absolute, top)
        if b"\0" in raw:
            return Found(os.fsdecode(raw), error=SourceError("its name has a NUL; use -0"))
        if inside.split(b"/", 1)[0] == b"..":
            return Found(
                path, error=SourceError("it is not below the directory that the list is about")
            )
        try:
            inside.decode("utf-8")
            status = os.lstat(absolute)
        except UnicodeDecodeError:
            return Found(path, error=SourceError("its name is not UTF-8; rename it"))
        except OSError as e:
            return Found(path, inside, SourceError(f"cannot read it: {e.strerror}"))
        if stat.S_ISDIR(status.st_mode):
            return Found(path, inside, kind=DIRECTORY, modified=status.st_mtime_ns)
        return Found(path, inside, kind=LINK if stat.S_ISLNK(status.st_mode) else FILE)
