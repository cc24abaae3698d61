"""
Signals that ask for a reload or for new log files, before there is a service to ask.

Their default is to kill.  From the first of our code that runs they are noted instead,
and the service does what they ask for once it starts.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

__all__ = ["handOver", "note", "noteOne", "noted"]

_came: set[int] = set()


def note() -> None:
    """
    Note SIGHUP and SIGUSR1 from now on, where they would kill.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGHUP, signal.SIGUSR1):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, noteOne)


def handOver(number: int) -> None:
    """
    Let somebody else handle a signal, who looks whether it has a handler already.
    """
    if signal.getsignal(number) is noteOne:
        signal.signal(number, signal.SIG_DFL)


def noted(number: int) -> bool:
    """
    @return: whether that signal came; and forget it.
    """
    came = number in _came
    _came.discard(number)
    return came


def noteOne(number: int, _: Any) -> None:
    """
    The handler of these signals.
    """
    _came.add(number)
