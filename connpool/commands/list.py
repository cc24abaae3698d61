"""
C{connpool list}: list what may be read at a receiver.
"""

from __future__ import annotations

import argparse
import sys
import time
from operator import methodcaller
from typing import Any

from connpool.commands.output import JSONLines
from connpool.commands.reading import addConnection, runReading

__all__ = ["addArguments", "run"]


def addArguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of C{connpool list}.
    """
    parser.add_argument(
        "names",
        nargs="*",
        default=[""],
        metavar="NAME",
        help="directories, or files (default: the top)",
    )
    addConnection(parser)
    parser.add_argument(
        "--recursive", action="store_true", help="list what is in directories below, too"
    )


def run(arguments: argparse.Namespace) -> int:
    """
    List.

    @return: the exit code.
    """
    from connpool.commands.progress import Progress
    from connpool.errors import NotFound, TransferError
    from connpool.transfer.fetch.lasting import LastingRemote
    from connpool.transfer.fetch.listing import RemoteEntry, entries, tree
    from connpool.transfer.names import displayName

    async def main(remote: LastingRemote, progress: Progress, lines: JSONLines | None) -> int:
        await remote.open()
        codes: set[int] = set()

        def failed(_: str, why: TransferError) -> None:
            progress.say(str(why))
            codes.add(why.exitCode)

        out = lines or JSONLines(sys.stdout, "standard output", progress.say)

        def show(entry: RemoteEntry) -> None:
            if lines is not None:
                lines.write(_asJSON(entry))
            else:
                out.say(_line(entry))

        for name in arguments.names:
            where = name.strip("/")
            try:
                found = (
                    tree(remote, where, failed) if arguments.recursive else entries(remote, where)
                )
                try:
                    async for entry in found:
                        show(entry)
                except NotFound:
                    show(await remote.ask(where, methodcaller("file", where)))
            except TransferError as e:
                if remote.lost:
                    raise
                failed(where, e)
        if not out.whole and not codes:
            return 1
        return codes.pop() if len(codes) == 1 else 3 * bool(codes)

    def _asJSON(entry: RemoteEntry) -> dict[str, Any]:
        return {
            "name": entry.path,
            "kind": "directory" if entry.directory else "file",
            "size": None if entry.directory else entry.size,
            "modified": entry.modified,
        }

    def _line(entry: RemoteEntry) -> str:
        when = "-"
        if entry.modified:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.modified / 1e9))
        size = "-" if entry.directory else str(entry.size)
        return f"{size:>14}  {when:<16}  {displayName(entry.path)}{'/' * entry.directory}"

    return runReading(arguments, "list", main)
