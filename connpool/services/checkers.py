"""
Checkers of passwords, as C{--auth} and C{--status-auth} name them.
"""

from __future__ import annotations

import os
from typing import Any

from twisted.cred import strcred
from twisted.cred.checkers import FilePasswordDB
from twisted.cred.credentials import IUsernamePassword
from twisted.logger import Logger
from twisted.python import usage

from connpool.regularfiles import readRegular

__all__ = ["PasswordFile", "passwordChecker"]


class PasswordFile(FilePasswordDB):
    """
    Lines of C{name:password}.

    Twisted's own splits at every colon: of C{bob:correct:horse} the password
    would be C{correct}.  An empty one lets nobody in.
    """

    _log = Logger()

    def getUser(self, username: bytes) -> tuple[bytes, bytes]:
        try:
            for line in readRegular(self.filename).splitlines():
                name, _, password = line.rstrip().partition(b":")
                if name == username and password:
                    return name, password
        except OSError as e:
            self._log.error("cannot read {path}: {why}", path=self.filename, why=e.strerror)
        raise KeyError(username)


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
    if kind == "file":
        if not (os.path.isfile(argument) and os.access(argument, os.R_OK)):
            raise usage.UsageError(f"--{option}: cannot read the file {argument!r}")
        return PasswordFile(argument)
    try:
        checker = strcred.makeChecker(description)
    except strcred.InvalidAuthType:
        raise usage.UsageError(
            f"--{option}: there is no checker {kind!r}; see twistd filerecv --help-auth"
        ) from None
    except (strcred.StrcredException, ValueError, TypeError) as e:
        why = str(e) or f"{kind}: cannot be used"
        raise usage.UsageError(f"--{option}: {why.splitlines()[0]}") from None
    if IUsernamePassword not in checker.credentialInterfaces:
        raise usage.UsageError(f"--{option}: {kind}: does not check passwords; use file:")
    return checker
