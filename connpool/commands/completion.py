"""
C{connpool completion}: the completion of this command for a shell.
"""

from __future__ import annotations

import argparse

from connpool.commands.output import show

__all__ = ["addArguments", "run"]

SHELLS = ("bash", "zsh")

#: Words in the help for what is a path, to the kind of it.
_PATHS = {"FILE": "FILE", "FILE.svg": "FILE", "PATH": "FILE", "DIRECTORY": "DIRECTORY"}


def addArguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the arguments of C{connpool completion}.
    """
    parser.add_argument(
        "shell", choices=SHELLS, help='the shell; use it as: eval "$(connpool completion bash)"'
    )


class _Parser(argparse.ArgumentParser):
    """
    A parser whose paths are completed.
    """

    def completePaths(self) -> None:
        """
        Say which values are paths, as shtab wants it, here and in all subcommands.
        """
        import shtab

        for action in self._actions:
            kind = _PATHS.get(str(action.metavar))
            if kind is not None:
                vars(action)["complete"] = getattr(shtab, kind)
            if isinstance(action.choices, dict):
                for parser in action.choices.values():
                    parser.completePaths()


def run(arguments: argparse.Namespace) -> int:
    """
    Print what the shell is to read.

    @return: the exit code.
    """
    import shtab

    from connpool.commands import COMMANDS, parserOf

    parser = parserOf(COMMANDS, _Parser)
    parser.completePaths()
    show(shtab.complete(parser, shell=arguments.shell))
    return 0
