"""
A user and a password that never stand on a command line.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

import attrs

__all__ = ["VARIABLE", "Credentials", "readCredentials"]

#: The environment variable that holds C{USER:PASSWORD}.
VARIABLE = "CONNPOOL_CREDENTIALS"


@attrs.frozen
class Credentials:
    """
    @ivar user: the name of the sender.
    @ivar secret: password or token.
    """

    user: str
    secret: bytes = attrs.field(repr=False)


def readCredentials(path: str | None, environment: Mapping[str, str]) -> Credentials | None:
    """
    @param path: of a file that only its owner can read, with C{USER:PASSWORD}
        in its first line; L{None} to look into the environment.
    @return: L{None} if there are none.
    @raise ValueError: for a file that cannot be used; one line, without what
        is in it.
    """
    if path is None:
        text = environment.get(VARIABLE)
        if text is None:
            return None
        where = VARIABLE
    else:
        text, where = _firstLine(path), path
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise ValueError(f"{where}: write USER:PASSWORD")
    try:
        user.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: the user's name is not UTF-8") from None
    return Credentials(user, os.fsencode(password))


def _firstLine(path: str) -> str:
    try:
        # a FIFO without a writer must not keep us waiting
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(fd, True)
        with open(fd, encoding="utf-8", errors="surrogateescape") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise ValueError(f"{path}: others can read it; chmod 600 it")
            return file.readline(4096).rstrip("\r\n")
    except OSError as e:
        raise ValueError(f"{path}: {e.strerror}") from None
