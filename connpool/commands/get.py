"""
C{connpool get}: get files from a receiver.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable
from typing import Any

from connpool.commands.output import JSONLines
from connpool.commands.reading import addConnection, runReading

__all__ = ["addArguments", "run"]

#: Connections in a row that bring nothing, and seconds before another one.
_ATTEMPTS, _FIRST_SECONDS, _LONGEST_SECONDS = 8, 0.5, 15.0


def addArguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of C{connpool get}.
    """
    parser.add_argument("names", nargs="+", metavar="NAME", help="files at the receiver")
    addConnection(parser)
    parser.add_argument(
        "--output",
        metavar="PATH",
        default=".",
        help="where they go: a directory, or for one file its new name (default: the current one)",
    )
    parser.add_argument(
        "--recursive", action="store_true", help="get all that is below a directory"
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="put a file in the place of another content that has its name here",
    )


def run(arguments: argparse.Namespace) -> int:
    """
    Get.

    @return: the exit code.
    """
    from connpool.commands.progress import Progress
    from connpool.transfer.fetch.remote import Remote

    async def main(
        connect: Callable[[], Awaitable[Remote]], progress: Progress, lines: JSONLines | None
    ) -> int:
        return await _Run(arguments, connect, progress, lines).get()

    return runReading(arguments, "get", main)


class _Run:
    """
    One call of the command.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        connect: Callable[[], Awaitable[Any]],
        progress: Any,
        lines: JSONLines | None,
    ) -> None:
        self._arguments = arguments
        self._connect = connect
        self._progress = progress
        self._lines = lines
        self._remote: Any = None
        self._codes: set[int] = set()
        self._count = self._bytes = self._came = 0
        self._there = 0
        self._last = ""

    async def get(self) -> int:
        """
        @return: the exit code.
        """
        import time

        from connpool.commands.progress import sized

        began = time.monotonic()
        output = self._arguments.output
        mistake = self._mistake(output)
        if mistake is not None:
            self._progress.say(f"--output: {mistake}")
            return 2
        self._remote = await self._connect()
        for name in self._arguments.names:
            path = name.strip("/")
            if self._arguments.recursive:
                await self._getTree(path)
            elif os.path.isdir(output):
                await self._getOne(path, os.path.join(output, os.path.basename(path)))
            else:
                await self._getOne(path, output)
        if self._count:
            seconds = max(time.monotonic() - began, 1e-6)
            there = f", {self._there} there already" * bool(self._there)
            held = self._bytes - self._came
            resumed = f", {sized(held)} of it held before" * (held > 0 and not self._there)
            self._progress.line(
                f"{self._count} file{'s' * (self._count > 1)}, {sized(self._bytes)}{resumed} in "
                f"{seconds:.2f} s ({sized(self._came / seconds)}/s){there}; "
                f"verified by {self._last}"
            )
        return self._codes.pop() if len(self._codes) == 1 else 3 * bool(self._codes)

    def _mistake(self, output: str) -> str | None:
        """
        @return: why nothing can go to C{output}, if that is known before anything comes.
        """
        if output == "-":
            return "files do not go to standard output; ./- is a file of that name"
        if self._arguments.recursive or os.path.isdir(output):
            return None
        if len(self._arguments.names) > 1:
            return f"{output} is no directory, and there are more files"
        parent = os.path.dirname(output) or "."
        return None if os.path.isdir(parent) else f"there is no directory {parent}; make it first"

    async def _getTree(self, path: str) -> None:
        from connpool.errors import NotFound, TransferError

        top = os.path.dirname(path)
        found: list[str] = []
        try:
            # all of it first: what is got is long on its way, and a list is soon over
            tree = self._remote.tree(path, self._failed)
            found += [entry.path async for entry in tree if not entry.directory]
        except NotFound:
            found.append(path)  # a file, or nothing
        except TransferError as e:
            self._failed(path, e)
        for each in found:
            target = os.path.join(self._arguments.output, os.path.relpath(each, top or "."))
            try:
                os.makedirs(os.path.dirname(target), exist_ok=True)
            except OSError as e:
                self._failed(each, TransferError(f"cannot make its directory: {e.strerror}"))
                continue
            await self._getOne(each, target)

    async def _getOne(self, name: str, target: str) -> None:
        from connpool.errors import NotFound, TransferError
        from connpool.transfer.names import displayName

        try:
            try:
                fetched = await self._persistently(name, target)
            except NotFound:
                if await self._remote.isDirectory(name):
                    shown = displayName(name) or "/"
                    raise NotFound(f'"{shown}" is a directory; add --recursive') from None
                raise
        except TransferError as e:
            self._failed(name, e)
            return
        self._count += 1
        self._bytes += fetched.size
        self._came += fetched.came
        self._there += fetched.status == "duplicate"
        self._last = fetched.digest
        if self._lines is not None:
            self._lines.write(
                {
                    "name": displayName(name),
                    "path": displayName(target),
                    "status": fetched.status,
                    "size": fetched.size,
                    "came": fetched.came,
                    "digest": fetched.digest,
                    "root": None if fetched.root is None else fetched.root.hex(),
                    "error": None,
                }
            )

    async def _persistently(self, name: str, target: str) -> Any:
        """
        Get a file over as many connections as it takes.
        """
        from twisted.internet import reactor, task
        from twisted.internet.threads import deferToThread

        from connpool.errors import TransferError
        from connpool.transfer.fetch.download import fetchFile
        from connpool.transfer.names import displayName

        failures, best = 0, -1
        far = [0]

        def progressed(done: int, size: int) -> None:
            far[0] = max(far[0], done)
            self._progress.show(displayName(name), done, size)

        while True:
            try:
                if self._remote.session.lost is not None:
                    self._remote = await self._connect()
                return await fetchFile(
                    self._remote,
                    name,
                    target,
                    deferToThread,
                    replace=self._arguments.replace,
                    progress=progressed,
                )
            except TransferError as e:
                failures = 1 if far[0] > best else failures + 1
                best = max(best, far[0])
                if not e.retryable or failures >= _ATTEMPTS:
                    raise
                wait = min(_FIRST_SECONDS * 2 ** (failures - 1), _LONGEST_SECONDS)
                self._progress.say(f"{displayName(name)}: {e}; trying again in {wait:g} s")
                await task.deferLater(reactor, wait, lambda: None)

    def _failed(self, name: str, why: Any) -> None:
        from connpool.transfer.names import displayName

        shown = displayName(name)
        text = str(why)
        self._progress.say(text if shown in text else f"{shown}: {text}")
        self._codes.add(why.exitCode)
        if self._lines is not None:
            nothing = dict.fromkeys(("path", "size", "came", "digest", "root"))
            error = {"code": why.code, "text": text}
            self._lines.write({**nothing, "name": shown, "status": "failed", "error": error})
