"""
Secrets in files; command lines can be read by others.
"""

from __future__ import annotations

import os
import stat

from connpool.errors import AddressError

__all__ = ["readKey"]

MAX_KEY_BYTES = 4096


def readKey(path: str, *, mayWait: bool = True) -> bytes:
    """
    Read the key of irtt or STAMP.

    @param mayWait: whether the file may be a FIFO whose writer is yet to come.
    @return: the file's contents without white space around.
    @raise AddressError: the file cannot be read, is empty or too long.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if mayWait else os.O_NONBLOCK))
        with open(fd, "rb") as file:
            if not mayWait and not stat.S_ISREG(os.fstat(fd).st_mode):
                raise AddressError(f"key-file={path}: not a regular file")
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as e:
        raise AddressError(f"key-file={path}: {e.strerror}") from None
    if len(data) > MAX_KEY_BYTES:
        raise AddressError(
            f"key-file={path}: longer than {MAX_KEY_BYTES} bytes; is it the right file?"
        )
    key = data.strip()
    if not key:
        raise AddressError(f"key-file={path}: the file is empty")
    return key
