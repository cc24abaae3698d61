"""
The C{connpool} command: one module for each subcommand, imported when asked for.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any

from connpool import __version__
from connpool.commands.output import CannotWrite, complain, show
from connpool.standardstreams import prepareStreams

__all__ = ["COMMANDS", "main", "parserOf", "program"]

#: Subcommand to its one-line description; the module has the same name.
COMMANDS: dict[str, str] = {
    "completion": "print the completion of this command for a shell",
    "get": "get files from a receiver that lets you read",
    "list": "list what may be read at a receiver",
    "partials": "list or remove unfinished files of a receiver",
    "ping": "measure the path to a UDP or TCP echo",
    "resolve": "show how an address is understood",
    "send": "send files",
    "states": "count TCP connections by state",
}

#: New objects before the collector looks for garbage, where Python has 700 or 2,000.  What
#: a start imports is about 80,000, and all of it stays.
COLLECT_OBJECTS = 100_000


def program() -> int:
    """
    Be the program C{connpool}.

    The collector would walk what is imported dozens of times while it is imported, and
    twice more when Python ends: together a third of the time of a command that sends one
    small file.

    @return: the exit code; C{console_scripts} exits with it.
    """
    gc.set_threshold(COLLECT_OBJECTS)
    try:
        return main()
    finally:
        gc.freeze()


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run C{connpool ARGUMENTS}.

    @return: the exit code.
    """
    prepareStreams(discard=False)
    words = sys.argv[1:] if argv is None else argv
    code = 0
    try:
        try:
            code = _main(words)
        finally:
            show()  # also what --help left in the buffer
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except CannotWrite as e:
        # a command that failed has said why, perhaps the same
        if not code:
            complain(f"{' '.join(['connpool', *filter(None, [_chosen(words)])])}: {e}")
        return code or 1
    return code


def _chosen(argv: Sequence[str]) -> str | None:
    return next((word for word in argv if not word.startswith("-")), None)


def _main(argv: Sequence[str]) -> int:
    # only the module that will run: start-up time is part of every call
    arguments = parserOf({_chosen(argv)}).parse_args(argv)
    command = import_module(f"connpool.commands.{arguments.command}")
    return int(command.run(arguments))


def parserOf(
    whole: Collection[str | None], kind: type[argparse.ArgumentParser] = argparse.ArgumentParser
) -> Any:
    """
    Make the parser of the command line.

    @param whole: the subcommands whose arguments are wanted.
    @param kind: its class.
    """
    parser = kind(prog="connpool", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"connpool {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
        )
        if name in whole:
            import_module(f"connpool.commands.{name}").addArguments(subparser)
    return parser
