"""
C{connpool send}: send files.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from typing import Any

from connpool.commands.connecting import DEFAULT_TO, asTimeout, endpointOf, prepareNative
from connpool.commands.progress import Progress
from connpool.errors import (
    TransferError,
    Unconfirmed,
    Unsupported,
    WrongSetting,
)
from connpool.sizes import asRate
from connpool.transfer.digests import digestNamed
from connpool.transfer.names import displayName
from connpool.transfer.records import ASKABLE_DURABILITIES, IF_EXISTS

__all__ = ["addArguments", "run"]

#: Connections a user may ask for.
MAX_JOBS = 32

#: What would be misleading to ask of the classic protocol.
_NOT_CLASSIC = (
    *("dry_run", "json", "receipt", "credentials", "if_exists"),
    *("rules", "files_from", "bwlimit", "update", "checksum", "growing"),
)
#: An option is called as what is read of it, but for this.
_SAID = {"rules": "exclude"}


def addArguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of C{connpool send}.
    """
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="files, directories, or - for standard input; with --files-from, the directory that "
        "its paths are below",
    )
    parser.add_argument(
        "--to",
        default=DEFAULT_TO,
        metavar="HOST:PORT",
        help="the receiver, or an endpoint such as tls:HOST or unix:/run/s (default %(default)s)",
    )
    parser.add_argument(
        "--ca",
        metavar="FILE",
        help="for tls:HOST: trust the certificates in this PEM file (or *.pem in this directory), "
        "an authority's or the receiver's own, instead of the system's authorities",
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
        choices=ASKABLE_DURABILITIES,
        default="best",
        help="what the receiver shall promise: none survives the death of its process, data has "
        "the contents synced before the name, full the name as well; less than that is exit code "
        "3. best is the strongest that its file system reaches (default %(default)s)",
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
        "--bwlimit",
        type=_rate,
        default=0,
        metavar="RATE",
        help="send at most so many bytes a second over all connections: a number, or one with K, M "
        "or G (default: no limit)",
    )
    native.add_argument(
        "--name",
        type=_name,
        default="stdin",
        help="what standard input is called (default %(default)s)",
    )
    native.add_argument(
        "--credentials",
        metavar="FILE",
        help="USER:PASSWORD in a file that only you can read (default: the environment variable "
        "CONNPOOL_CREDENTIALS)",
    )
    native.add_argument(
        "--exclude",
        dest="rules",
        action="extend",
        type=partial(_rules, "excluding"),
        metavar="PATTERN",
        help="leave out what fits, as in .gitignore: *.log, build/, /top (repeatable; of these "
        "three options the last pattern that fits decides)",
    )
    native.add_argument(
        "--include",
        dest="rules",
        action="extend",
        type=partial(_rules, "including"),
        metavar="PATTERN",
        help="send what fits, although an earlier pattern leaves it out; if it is the first of "
        "these options, send nothing that no pattern fits",
    )
    native.add_argument(
        "--exclude-from",
        dest="rules",
        action="extend",
        type=partial(_rules, ""),
        metavar="FILE",
        help="take the patterns from FILE, one a line, ! before what is to go",
    )
    native.add_argument(
        "--files-from",
        metavar="FILE",
        help="send what FILE (or standard input: -) lists, one path a line, each under its path "
        "below PATH (default: the current directory)",
    )
    native.add_argument(
        "-0",
        "--null",
        action="store_true",
        help="paths of --files-from end with NUL, as those of find -print0 do",
    )
    native.add_argument(
        "--update",
        action="store_true",
        help="ask the receiver first, and send only what it does not have with this size and time; "
        "it tells of what the same user stored within a week, and the rest is sent",
    )
    native.add_argument(
        "--checksum",
        action="store_true",
        help="with --update: compare contents, which are read on both sides, instead of times",
    )
    native.add_argument(
        "--growing",
        action="store_true",
        help="send a file that gets longer meanwhile, such as a log, as it was when it was opened "
        "(else: begin it again, twice)",
    )
    native.add_argument(
        "--compress",
        choices=["auto", "always", "never"],
        default="auto",
        help="compress (zstd) what shrinks of files that do not go in one piece: where that is "
        "faster, always, or never (default %(default)s)",
    )
    native.add_argument(
        "--no-compress",
        dest="compress",
        action="store_const",
        const="never",
        help="the same as --compress never",
    )
    native.add_argument(
        "--dry-run",
        action="store_true",
        help="only ask the receiver what it would take; say why the rest would not go",
    )
    native.add_argument(
        "--json", action="store_true", help="a JSON line on standard output for each file"
    )
    native.add_argument(
        "--receipt", metavar="FILE", help="append the receipts to FILE, a JSON line each"
    )
    parser.add_argument(
        "--timeout",
        type=asTimeout,
        default=60.0,
        metavar="SECONDS",
        help="give up connecting, and a connection on which the receiver says nothing (classic: "
        "takes nothing), after so many seconds; native then connects again (default %(default)g)",
    )


def _rules(kind: str, text: str) -> list[Any]:
    # imported here: who chooses nothing does not pay for it
    from connpool.transfer.send.choosing import Rule, readRules

    try:
        if not kind:
            return list(readRules(text))
        make = Rule.excluding if kind == "excluding" else Rule.including
        return [make(text, "--exclude" if kind == "excluding" else "--include")]
    except OSError as e:
        raise argparse.ArgumentTypeError(f"{displayName(text)}: {e.strerror}") from None
    except WrongSetting as e:
        named = f"{displayName(text)}: " * (not kind)
        raise argparse.ArgumentTypeError(f"{named}{e}") from None


def _listed(arguments: argparse.Namespace) -> None:
    """
    Read the list of C{--files-from} in place of the paths.

    @raise ValueError: why not.
    """
    from connpool.transfer.send.listed import ListedFiles

    paths, name = arguments.paths, arguments.files_from
    if len(paths) > 1 or not os.path.isdir(base := paths[0] if paths else "."):
        raise ValueError("one PATH may stand beside it: the directory that its paths are below")
    try:
        os.path.abspath(base)
    except FileNotFoundError:
        raise ValueError("the current directory was removed") from None
    separator = b"\0" if arguments.null else b"\n"
    if name == "-" and sys.stdin is None:
        raise ValueError("standard input is closed")
    try:
        arguments.paths = ListedFiles.read(0 if name == "-" else name, separator, base)
    except OSError as e:
        raise ValueError(f"{displayName(name)}: {e.strerror}") from None


def _digests(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    try:
        for name in names:
            digestNamed(name)
    except Unsupported as e:
        raise argparse.ArgumentTypeError(str(e)) from None
    return names


def _name(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("it is not UTF-8") from None
    return text


def _rate(text: str) -> int:
    try:
        return asRate(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def _jobs(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_JOBS):
        raise argparse.ArgumentTypeError(f"a number from 1 to {MAX_JOBS} is asked for")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """
    Send, and say honestly what became of it.

    @return: the exit code.
    """
    # a bar would be in the way of lines on the same terminal
    with Progress(bar=not (arguments.json and sys.stdout and sys.stdout.isatty())) as progress:
        return _send(arguments, progress)


def _send(arguments: argparse.Namespace, progress: Progress) -> int:
    from twisted.internet import reactor

    try:
        if arguments.null and arguments.files_from is None:
            raise WrongSetting("-0: it is about the paths of --files-from")
        if arguments.files_from is None and not arguments.paths:
            raise WrongSetting("name a PATH, or a list of files with --files-from")
        endpoint = endpointOf(reactor, arguments, "to")
        (_checkNative if arguments.protocol == "native" else _checkClassic)(arguments)
    except WrongSetting as e:
        progress.say(str(e))
        return 2
    if arguments.protocol == "native":
        from connpool.commands.sendnative import sendNative

        return sendNative(reactor, endpoint, arguments, progress)
    from connpool.commands.running import runUntilEnded

    return runUntilEnded(
        reactor, lambda: _sendAll(reactor, endpoint, arguments, progress), progress
    )


def _checkNative(arguments: argparse.Namespace) -> None:
    """
    Read what the options name.

    @raise WrongSetting: why not, in one line.
    """
    if arguments.checksum and not arguments.update:
        raise WrongSetting("--checksum: it is a way to compare; add --update")
    prepareNative(arguments)
    if arguments.files_from is not None:
        try:
            _listed(arguments)
        except ValueError as e:
            raise WrongSetting(f"--files-from: {e}") from None


def _checkClassic(arguments: argparse.Namespace) -> None:
    for name in _NOT_CLASSIC:
        if getattr(arguments, name):
            option = _SAID.get(name, name.replace("_", "-"))
            raise WrongSetting(f"--{option}: the classic protocol cannot do that")


async def _sendAll(
    reactor: Any, endpoint: Any, arguments: argparse.Namespace, progress: Progress
) -> int:
    """
    Send by the classic protocol, one file after the other.

    @return: the exit code.
    """
    from twisted.internet.defer import CancelledError

    from connpool.transfer.send.classic import sendClassic

    failures = set()
    paths = arguments.paths
    for number, path in enumerate(paths):
        shown = displayName(path)
        of = f"{number} of {len(paths)} files, " * (len(paths) > 1)
        try:
            sent = await sendClassic(
                reactor,
                endpoint,
                path,
                progress=partial(progress.show, f"{of}{shown}"),
                timeout=arguments.timeout,
            )
        except CancelledError:
            progress.say(
                f"{shown}: interrupted; nothing can be resumed with the classic protocol; "
                "run it again"
            )
            raise
        except TransferError as e:
            progress.say(f"{shown}: {e}")
            failures.add(e.exitCode)
        else:
            progress.line(f"{shown}: sent {sent} bytes, unconfirmed (classic has no confirmation)")
    if not failures:
        return Unconfirmed.exitCode
    return failures.pop() if len(failures) == 1 else 3
