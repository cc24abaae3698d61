"""
C{connpool get}: get files from a receiver.
"""

from __future__ import annotations

import argparse
import os
from operator import methodcaller
from typing import TYPE_CHECKING, Any

from connpool.commands.output import JSONLines
from connpool.commands.reading import addConnection, runReading

if TYPE_CHECKING:
    from connpool.commands.progress import Progress
    from connpool.transfer.fetch.lasting import LastingRemote

__all__ = ["addArguments", "run"]


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

    async def main(remote: LastingRemote, progress: Progress, lines: JSONLines | None) -> int:
        return await _Run(arguments, remote, progress, lines).get()

    return runReading(arguments, "get", main)


class _Run:
    """
    One call of the command.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        remote: LastingRemote,
        progress: Progress,
        lines: JSONLines | None,
    ) -> None:
        self._arguments = arguments
        self._remote = remote
        self._progress = progress
        self._lines = lines
        self._codes: set[int] = set()
        self._count = self._bytes = self._came = 0
        self._there = self._unsaid = 0
        self._gaveUp = ""
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
        await self._remote.open()
        for name in self._arguments.names:
            path = name.strip("/")
            if self._arguments.recursive:
                await self._getTree(path)
            elif os.path.isdir(output):
                await self._getOne(path, os.path.join(output, os.path.basename(path)))
            else:
                await self._getOne(path, output)
        if self._unsaid:
            files = f"{self._unsaid} more file{'s' * (self._unsaid > 1)}"
            self._progress.say(f"{files}: {self._gaveUp}")
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
        from connpool.transfer.fetch.listing import tree

        top = os.path.dirname(path)
        found: list[str] = []
        try:
            # all of it first: what is got is long on its way, and a list is soon over
            entries = tree(self._remote, path, self._failed)
            found += [entry.path async for entry in entries if not entry.directory]
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
                if await self._remote.ask(name, methodcaller("isDirectory", name)):
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
        from twisted.internet.threads import deferToThread

        from connpool.transfer.fetch.download import fetchFile
        from connpool.transfer.names import displayName

        far = [0]

        def progressed(done: int, size: int) -> None:
            far[0] = max(far[0], done)
            self._progress.show(displayName(name), done, size)

        return await self._remote.ask(
            name,
            lambda remote: fetchFile(
                remote,
                name,
                target,
                deferToThread,
                replace=self._arguments.replace,
                progress=progressed,
            ),
            lambda: far[0],
        )

    def _failed(self, name: str, why: Any) -> None:
        from connpool.transfer.names import displayName

        shown = displayName(name)
        text = str(why)
        if self._remote.lost and text == self._gaveUp:
            self._unsaid += 1
        else:
            self._progress.say(text if shown in text else f"{shown}: {text}")
        self._gaveUp = text
        self._codes.add(why.exitCode)
        if self._lines is not None:
            nothing = dict.fromkeys(("path", "size", "came", "digest", "root"))
            error = {"code": why.code, "text": text}
            self._lines.write({**nothing, "name": shown, "status": "failed", "error": error})
