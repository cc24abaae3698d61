"""
The end of a service that cannot start: one line, exit code 1.

L{SystemExit} inside a service would leave the pidfile and hang the parent of a
daemonizing C{twistd}, so services raise L{StartFailed}; C{twistd} and
C{twist} let it out of the main program, where the excepthook prints its text
only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

import attrs

from connpool.errors import StartFailed

__all__ = ["failStart"]


def _say(line: str) -> None:
    """
    Print to the terminal if there is one.  A daemon has none (twistd's parent shows
    the first 100 bytes of the exception itself); its sys.stderr is its log.
    """
    detached = os.path.samestat(os.fstat(2), os.stat(os.devnull))
    (sys.stderr if detached else sys.__stderr__ or sys.stderr).write(line)


@attrs.frozen
class _Hook:
    """
    @ivar previous: what prints everything else.
    """

    previous: Callable[..., Any]

    def __call__(
        self, kind: type[BaseException], value: BaseException, traceback: TracebackType | None
    ) -> None:
        if issubclass(kind, StartFailed):
            _say(f"{value}\n")
        else:
            self.previous(kind, value, traceback)


def failStart(message: str) -> NoReturn:
    """
    @raise StartFailed: always; uncaught, it prints as one line.
    """
    # once: an embedder that catches this may try again as often as it likes
    if not isinstance(sys.excepthook, _Hook):
        sys.excepthook = _Hook(sys.excepthook)
    raise StartFailed(message)
