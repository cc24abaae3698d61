"""
The reactor, until a command has ended or is interrupted.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.commands.progress import Progress

__all__ = ["INTERRUPTED", "runUntilEnded"]

#: The exit code after SIGINT or SIGTERM.
INTERRUPTED = 130

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def runUntilEnded(
    reactor: Any,
    main: Callable[[], Coroutine[Any, Any, int]],
    progress: Progress,
    stop: Callable[[], Any] = lambda: None,
) -> int:
    """
    Run the reactor until C{main()} has ended.  SIGINT and SIGTERM cancel it.

    @param main: gives the exit code.
    @param progress: closed at the end.
    @param stop: called before it is cancelled.
    @return: the exit code.
    """
    codes: list[int] = []

    def begin() -> None:
        def cancel() -> None:
            stop()
            running.cancel()

        for number in _SIGNALS:
            # in the signal handler: the reactor does the rest
            signal.signal(number, lambda *_: reactor.callFromThread(cancel))
        running = Deferred.fromCoroutine(main())
        running.addCallbacks(codes.append, failed)
        running.addBoth(over)

    def failed(failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        codes.append(1)
        Logger().failure("sending failed", failure=failure)
        progress.say(f"internal error: {failure.value!r}")

    def over(_: Any) -> None:
        progress.close()
        for number in _SIGNALS:
            # a thread that hangs shall not keep us
            signal.signal(number, signal.SIG_DFL)
        reactor.stop()

    reactor.callWhenRunning(begin)
    reactor.run(installSignalHandlers=True)
    return codes[0] if codes else INTERRUPTED
