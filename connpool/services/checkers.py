"""
Checkers of passwords, as C{--auth} and C{--status-auth} name them.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.cred import strcred
from twisted.cred.credentials import IUsernamePassword
from twisted.python import usage

__all__ = ["passwordChecker"]


def passwordChecker(option: str, description: str) -> Any:
    """
    @param option: whose value it is, for messages.
    @param description: as L{strcred} takes it: C{file:PATH}, ….
    @return: a checker of names and passwords.
    @raise usage.UsageError: for a description that is none, or one that puts
        the password on the command line.
    """
    kind, _, argument = description.partition(":")
    if kind == "memory":
        raise usage.UsageError(
            f"--{option}: memory: shows the password to everybody who lists processes; use file:"
        )
    if kind == "file" and not os.access(argument, os.R_OK):
        raise usage.UsageError(f"--{option}: cannot read the file {argument!r}")
    try:
        checker = strcred.makeChecker(description)
    except (strcred.StrcredException, ValueError, TypeError) as e:
        why = str(e) or f"there is no checker {kind!r}"
        raise usage.UsageError(f"--{option}: {why.splitlines()[0]}") from None
    if IUsernamePassword not in checker.credentialInterfaces:
        raise usage.UsageError(f"--{option}: {kind}: does not check passwords; use file:")
    return checker
