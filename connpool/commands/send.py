"""
C{connpool send}: send files.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import Any

from connpool.addresses import clientEndpoint
from connpool.commands.progress import Progress
from connpool.errors import AddressError, TransferError, Unconfirmed, Unsupported
from connpool.transfer.digests import digestNamed
from connpool.transfer.names import displayName
from connpool.transfer.records import DURABILITIES, IF_EXISTS

__all__ = ["addArguments", "run"]

#: Connections a user may ask for.
MAX_JOBS = 32

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
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="files, directories, or - for standard input"
    )
    parser.add_argument(
        "--to",
        default=DEFAULT_TO,
        metavar="HOST:PORT",
        help="the receiver, or an endpoint such as unix:/run/s (default %(default)s)",
    )
    parser.add_argument(
        "--protocol",
        choices=["native", "classic"],
        default="native",
        help="native: verified and resumed; classic: the bare name, ok, bytes until the end, "
        "unconfirmed (default %(default)s)",
    )
    native = parser.add_argument_group("native only")
    native.add_argument(
        "--durability",
        choices=DURABILITIES,
        default="full",
        help="what the receiver shall promise: none survives the death of its process, data has "
        "the contents synced before the name, full the name as well (default %(default)s)",
    )
    native.add_argument(
        "--if-exists",
        choices=IF_EXISTS,
        default="",
        help="when a name is taken (default: the receiver's rule)",
    )
    native.add_argument(
        "--digests",
        type=_digests,
        default=("blake3", "sha256"),
        metavar="LIST",
        help="block digests trusted: blake3, sha256, xxh3 (default blake3,sha256)",
    )
    native.add_argument(
        "--jobs",
        type=_jobs,
        default=1,
        metavar="N",
        help="connections that a large file may use at once (default %(default)s)",
    )
    native.add_argument(
        "--name", default="stdin", help="what standard input is called (default %(default)s)"
    )
    native.add_argument(
        "--credentials",
        metavar="FILE",
        help="USER:PASSWORD in a file that only you can read (default: the environment variable "
        "CONNPOOL_CREDENTIALS)",
    )
    native.add_argument(
        "--dry-run", action="store_true", help="only ask the receiver what it would take"
    )
    native.add_argument(
        "--json", action="store_true", help="a JSON line on standard output for each file"
    )
    native.add_argument(
        "--receipt", metavar="FILE", help="append the receipts to FILE, a JSON line each"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long the receiver may stay silent (default %(default)g)",
    )


def _digests(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    try:
        for name in names:
            digestNamed(name)
    except Unsupported as e:
        raise argparse.ArgumentTypeError(str(e)) from None
    return names


def _jobs(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_JOBS):
        raise argparse.ArgumentTypeError(f"a number from 1 to {MAX_JOBS} is asked for")
    return int(text)


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
    if arguments.protocol == "native":
        from connpool.commands.sendnative import sendNative
        from connpool.transfer.credentials import readCredentials

        try:
            arguments.credentials = readCredentials(arguments.credentials, os.environ)
        except ValueError as e:
            sys.stderr.write(f"connpool send: --credentials: {e}\n")
            return 2
        return sendNative(reactor, endpoint, arguments)

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
