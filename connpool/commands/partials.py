"""
C{connpool partials}: the unfinished files of a receiver's directory.

It may be used beside a running receiver: the store takes any number of processes, and a
file that is being received is locked.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from connpool.commands.progress import sized
from connpool.errors import Busy, ConnpoolError, StartFailed, StoreError
from connpool.transfer.names import INTERNAL, displayName
from connpool.transfer.records import PartialInfo
from connpool.transfer.stores import LocalStore

__all__ = ["addArguments", "run"]

_COLUMNS = ("ID", "PRINCIPAL", "SIZE", "RECEIVED", "ON DISK", "ACTIVE", "AGE", "NAME")


def addArguments(parser: argparse.ArgumentParser) -> None:
    """
    Declare the arguments.
    """
    parser.add_argument("directory", metavar="DIRECTORY", help="where the receiver stores files")
    parser.add_argument(
        "--remove",
        metavar="ID",
        action="append",
        help="remove this one; its sender begins anew (repeatable)",
    )
    parser.add_argument("--json", action="store_true", help="JSON, one object a line")


def run(arguments: argparse.Namespace) -> int:
    """
    List or remove them.

    @return: the exit code.
    """
    from twisted.internet import reactor

    try:
        _checkOwner(arguments.directory)
    except StartFailed as e:
        return _fail(e)
    lines: list[str] = []
    codes: list[int] = []

    async def main() -> None:
        try:
            codes.append(await _run(reactor, arguments, lines))
        except ConnpoolError as e:
            codes.append(_fail(e))
        except OSError as e:
            codes.append(_fail(StoreError(e.strerror)))
        finally:
            loop.callLater(0, loop.stop)

    loop: Any = reactor
    loop.callWhenRunning(lambda: Deferred.fromCoroutine(main()))
    loop.run()
    for line in lines:
        print(line)
    return codes[0] if codes else 130


def _fail(why: ConnpoolError) -> int:
    print(f"connpool partials: {why}", file=sys.stderr)
    return why.exitCode


def _checkOwner(directory: str) -> None:
    """
    Refuse a directory that no receiver has used, which a store would make its own, and one
    whose receiver runs as another user.
    """
    shown = displayName(directory)
    try:
        status = os.lstat(os.path.join(directory, INTERNAL))
    except (FileNotFoundError, NotADirectoryError):
        why = "no receiver has used it" if os.path.isdir(directory) else "there is none"
        raise StartFailed(f"directory {shown}: {why}") from None
    except OSError as e:
        raise StartFailed(f"directory {shown}: {e.strerror}") from None
    if stat.S_ISDIR(status.st_mode) and status.st_uid != os.geteuid():
        try:
            user = pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            user = f"#{status.st_uid}"
        raise StartFailed(
            f"directory {shown}: its receiver runs as {user}; "
            f"try: sudo -u '{user}' connpool partials …"
        )


async def _run(reactor: Any, arguments: argparse.Namespace, lines: list[str]) -> int:
    store = LocalStore(reactor, arguments.directory)
    try:
        found = await store.partials()
        if arguments.remove is None:
            found.sort(key=lambda info: (info.principal, info.name, info.partialId))
            lines += (_asJSON if arguments.json else _asTable)(found, time.time())
            return 0
        return await _remove(store, found, arguments.remove)
    finally:
        await store.close()


async def _remove(store: LocalStore, found: Sequence[PartialInfo], ids: Sequence[str]) -> int:
    known = {info.partialId: info for info in found}
    code = 0
    for each in dict.fromkeys(ids):
        info = known.get(each)
        try:
            if info is None:
                raise StoreError(f"no unfinished file has the id {displayName(each)}")
            if info.active:
                raise Busy(f"{each} is being received now; stop its sender first")
            await store.delete(info)
        except ConnpoolError as e:
            code = _fail(e)
    return code


def _asJSON(found: Sequence[PartialInfo], now: float) -> Iterator[str]:
    for info in found:
        record = attrs.asdict(info)
        record["id"] = record.pop("partialId")
        yield json.dumps({**record, "age": round(max(0.0, now - info.changed), 3)})


def _asTable(found: Sequence[PartialInfo], now: float) -> Sequence[str]:
    if not found:
        return ["no unfinished files"]
    rows = [_COLUMNS]
    rows += [
        (
            info.partialId,
            displayName(info.principal),
            "?" if info.size is None else sized(info.size),
            sized(info.received),
            sized(info.allocated),
            "yes" if info.active else "no",
            _aged(max(0.0, now - info.changed)),
            displayName(info.name),
        )
        for info in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _aged(seconds: float) -> str:
    """
    Write an age in the largest unit of which there are two.
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
