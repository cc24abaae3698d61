"""
The connection of C{connpool list} and C{connpool get} to a receiver.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError

from connpool.commands.connecting import DEFAULT_TO, asTimeout, endpointOf, prepareNative
from connpool.commands.output import JSONLines
from connpool.commands.progress import Progress
from connpool.commands.running import runUntilEnded
from connpool.errors import TransferError, WrongSetting
from connpool.transfer.fetch.lasting import LastingRemote
from connpool.transfer.fetch.remote import Remote
from connpool.transfer.names import displayName
from connpool.transfer.send.connections import (
    Connection,
    Dialled,
    SessionFactory,
    connectionFailure,
    greetingError,
)
from connpool.transfer.wire.handshake import READ

__all__ = ["addConnection", "runReading"]


def addConnection(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments that say where from, and as whom.
    """
    parser.add_argument(
        "--from",
        default=DEFAULT_TO,
        metavar="HOST:PORT",
        help="the receiver, or an endpoint such as tls:HOST or unix:/run/s (default %(default)s)",
    )
    parser.add_argument(
        "--ca",
        metavar="FILE",
        help="for tls:HOST: trust the certificates in this PEM file (or *.pem in this directory)",
    )
    parser.add_argument(
        "--credentials",
        metavar="FILE",
        help="USER:PASSWORD in a file that only you can read (default: the environment variable "
        "CONNPOOL_CREDENTIALS)",
    )
    parser.add_argument(
        "--json", action="store_true", help="a JSON line on standard output for each name"
    )
    parser.add_argument(
        "--timeout",
        type=asTimeout,
        default=60.0,
        metavar="SECONDS",
        help="give up connecting, and a connection on which the receiver says nothing, after so "
        "many seconds (default %(default)g)",
    )


def runReading(
    arguments: argparse.Namespace,
    name: str,
    main: Callable[[LastingRemote, Progress, JSONLines | None], Awaitable[int]],
) -> int:
    """
    Call C{main} with the receiver, which is not connected yet, the progress and the JSON lines.

    @param name: of the command.
    @return: the exit code.
    """
    bar = not (arguments.json and sys.stdout and sys.stdout.isatty())
    with Progress(bar, name) as progress:
        from twisted.internet import reactor

        try:
            endpoint = endpointOf(reactor, arguments, "from")
            prepareNative(arguments)
        except WrongSetting as e:
            progress.say(str(e))
            return 2
        factory = SessionFactory(
            reactor,
            credentials=arguments.credentials,
            idleTimeout=arguments.timeout,
            more=(READ,),
        )
        dialled = Dialled(endpoint, factory)
        made: list[Connection] = []

        async def connect() -> Remote:
            try:
                made.append(await dialled.open())
            except Exception as e:
                raise (greetingError(e) or connectionFailure(e)) from None
            return Remote(made[-1].session)

        def waits(name: str, why: TransferError, seconds: float) -> None:
            progress.say(f"{displayName(name)}: {why}; trying again in {seconds:g} s")

        async def run() -> int:
            try:
                return await main(LastingRemote(reactor, connect, waits), progress, lines)
            except TransferError as e:
                progress.say(str(e))
                return e.exitCode
            except CancelledError:
                progress.say("interrupted; run the same command to go on from there")
                raise
            finally:
                for connection in made:
                    connection.discard()

        lines = JSONLines(sys.stdout, "--json", progress.say) if arguments.json else None
        code = runUntilEnded(reactor, run, progress)
        return code or int(lines is not None and not lines.whole)
