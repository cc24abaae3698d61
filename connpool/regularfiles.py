"""
Small files of an operator, read without ever waiting for somebody to write them.
"""

from __future__ import annotations

import errno
import os
import stat

__all__ = ["readRegular"]

#: The largest file taken, in bytes: bundles of all the world's authorities have less.
MAX_FILE_BYTES = 16 << 20


def readRegular(path: str | os.PathLike[str]) -> bytes:
    """
    @return: the content of a regular file; symbolic links are followed.
    @raise OSError: it cannot be read, is of another kind (opening a FIFO would
        wait for its writer), or is larger than L{MAX_FILE_BYTES}; C{strerror} says so.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        with open(fd, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(fd)
    if len(content) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MAX_FILE_BYTES} bytes", path)
    return content
