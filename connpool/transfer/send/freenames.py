"""
Moving a file to a name that nothing has yet.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator

from connpool.transfer.syscalls import Syscalls

__all__ = ["moveFree", "namesFor", "putBack", "syncDirectory"]

#: Bytes of a name, and those that are kept before a number.
_LONGEST_BYTES, _KEPT_BYTES = 255, 240

_AT_FDCWD = -100


def syncDirectory(path: str) -> None:
    """
    Make the names in a directory durable.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def namesFor(target: str) -> Iterator[str]:
    """
    @return: C{target} and what it may be called if that is taken, without end.
    """
    where, last = os.path.split(target)
    name = last.encode()
    if len(name) <= _LONGEST_BYTES:
        yield target
    kept = name[:_KEPT_BYTES].decode("utf-8", "ignore")
    for number in itertools.count(1):
        yield os.path.join(where, f"{kept}.{number}")


def moveFree(source: str, target: str) -> None:
    """
    Rename a file to C{target}, or to the first free name after it: what another
    program put there meanwhile stays.

    Not by a link: nobody may link a file that is not theirs
    (C{fs.protected_hardlinks}, proc(5)).
    """
    for name in namesFor(target):
        with contextlib.suppress(FileExistsError):
            try:
                Syscalls.renameNoReplace(source, name, src_dir_fd=_AT_FDCWD, dst_dir_fd=_AT_FDCWD)
            except OSError as e:
                if e.errno not in {errno.EINVAL, errno.ENOSYS}:
                    raise
                # a file system without it: ZFS before 2.2
                os.link(source, name, follow_symlinks=False)
                os.unlink(source)
            return


def putBack(taken: str, folder: str, path: str) -> None:
    """
    Move a file to its C{path} in C{folder}, or beside it.
    """
    target = os.path.join(folder, path)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        # there is a file now where its directory was
        target = os.path.join(folder, f"recovered-{os.path.basename(path)}")
    moveFree(taken, target)
