"""
C{connpool send}: send files.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

from connpool.addresses import clientEndpoint
from connpool.commands.progress import Progress
from connpool.errors import AddressError, TransferError, Unconfirmed
from connpool.transfer.names import displayName

__all__ = ["addArguments", "run"]

DEFAULT_TO = "127.0.0.1:8640"


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError("seconds above 0 are asked for")
    return value


def addArguments(parser: argparse.ArgumentParser) -> None:
    """
    The arguments of C{connpool send}.
    """
    parser.add_argument("paths", nargs="+", metavar="FILE", help="what to send")
    parser.add_argument(
        "--to",
        default=DEFAULT_TO,
        metavar="HOST:PORT",
        help="the receiver, or an endpoint such as unix:/run/s (default %(default)s)",
    )
    parser.add_argument(
        "--protocol",
        choices=["classic"],
        default="classic",
        help="classic: the bare name, ok, bytes until the end (default %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long the receiver may stay silent (default %(default)g)",
    )


def run(arguments: argparse.Namespace) -> int:
    """
    Send, and say honestly what became of it.

    @return: the exit code.
    """
    from twisted.internet import reactor, task

    try:
        endpoint = clientEndpoint(reactor, arguments.to, arguments.timeout)
    except AddressError as e:
        sys.stderr.write(f"connpool send: --to: {e}\n")
        return 2

    codes: list[int] = []

    async def main(reactor: Any) -> None:
        with Progress() as progress:
            for path in arguments.paths:
                code = await _sendOne(reactor, endpoint, path, arguments, progress)
                codes.append(code)

    try:
        task.react(lambda r: _deferred(main(r)), [], reactor)
    except SystemExit as e:
        if e.code:
            return 130 if len(codes) < len(arguments.paths) else 1
    return _exitCode(codes)


def _deferred(coroutine: Any) -> Any:
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(coroutine)


def _exitCode(codes: list[int]) -> int:
    """
    One code for all files: theirs if they agree; else "some failed".
    """
    failures = {code for code in codes if code != Unconfirmed.exitCode}
    if not failures:
        return Unconfirmed.exitCode
    return failures.pop() if len(set(codes)) == 1 else 3


async def _sendOne(
    reactor: Any,
    endpoint: Any,
    path: str,
    arguments: argparse.Namespace,
    progress: Progress,
) -> int:
    from connpool.transfer.classic import sendClassic

    shown = displayName(path)
    try:
        sent = await sendClassic(
            reactor,
            endpoint,
            path,
            started=lambda size: progress.begin(shown, size),
            progress=progress.advance,
            timeout=arguments.timeout,
        )
    except TransferError as e:
        progress.line(f"connpool send: {shown}: {e}")
        return e.exitCode
    progress.line(f"{shown}: sent {sent} bytes, unconfirmed (classic has no confirmation)")
    return Unconfirmed.exitCode
