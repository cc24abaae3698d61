"""
Standard streams that are there, and that take every character.

A supervisor may start us with some of them closed: Python has L{None} for these,
and the next file or socket that is opened gets their number.  A terminal may not
have all characters: of a help text or a file name, those it lacks are escaped.
"""

from __future__ import annotations

import fcntl
import os
import sys
from contextlib import suppress
from typing import Any

__all__ = ["canWrite", "prepareStreams"]


def prepareStreams(*, discard: bool) -> None:
    """
    Open what is closed, on the null device, and escape what cannot be encoded.  Reading
    from an input that was closed still fails.

    @param discard: for a closed standard output: whether what is written to it
        vanishes, or fails as it should for a program whose result it is.
    """
    modes = ((0, os.O_WRONLY), (1, os.O_WRONLY if discard else os.O_RDONLY), (2, os.O_WRONLY))
    for fd, mode in modes:
        try:
            os.fstat(fd)
        except OSError:
            # a system without a null device has no remedy either
            with suppress(OSError):
                os.open(os.devnull, mode)  # the lowest free number is this one
                os.set_inheritable(fd, True)
    # sys.stdin stays away: an empty input is not the same as none
    for name, fd in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            with suppress(OSError):
                opened = open(fd, "w", closefd=False)  # noqa: SIM115 - it stays open
                setattr(sys, name, opened)
    for stream in (sys.stdout, sys.stderr):
        # not those that a test or an embedder put in their place
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def canWrite(stream: Any) -> bool:
    """
    @return: whether C{stream} was open before L{prepareStreams}.
    """
    try:
        flags = fcntl.fcntl(stream.fileno(), fcntl.F_GETFL)
    except (AttributeError, OSError):
        return stream is not None
    return flags & os.O_ACCMODE != os.O_RDONLY
