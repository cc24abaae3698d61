"""
Names of files that are not finished yet.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from connpool.errors import WrongSetting

__all__ = ["USUAL", "TemporaryNames", "asPatterns"]

#: Names that programs give to what they are still writing, to what they lock
#: and to what was deleted while open; and directories of unfinished files.
USUAL = (
    "*.part",
    "*.tmp",
    "*~",
    "~$*",
    ".~lock*",
    ".*.sw[a-p]",
    ".nfs*",
    ".fuse_hidden*",
    ".rsync-partial",
)

#: rsync's: C{.NAME.} and letters and digits by chance.  One capital letter or
#: digit, and one letter, must be among them, so that C{.config.json} and
#: C{.log.2026} are sent.
_RSYNC = r"\..+\.(?=[^.]*[A-Z0-9])(?=[^.]*[A-Za-z])[A-Za-z0-9]{4,6}"


class TemporaryNames:
    """
    The names that are left alone.

    @param patterns: shell patterns (fnmatch) of one component.
    @param usual: whether L{USUAL} and rsync's are left alone, too.
    """

    def __init__(self, patterns: Sequence[str] = (), usual: bool = True) -> None:
        expressions = [fnmatch.translate(each) for each in (*patterns, *(USUAL if usual else ()))]
        if usual:
            expressions.append(f"(?s:{_RSYNC})\\Z")
        self._match = re.compile("|".join(expressions) or r"(?!)").match

    def __contains__(self, name: str) -> bool:
        """
        @param name: a component of a path.
        """
        return self._match(name) is not None


def asPatterns(texts: Sequence[str]) -> Sequence[str]:
    """
    Check patterns of names.

    @raise WrongSetting: for one that no name fits.
    """
    for text in texts:
        if not text or "/" in text:
            raise WrongSetting(f"{text!r} is not a pattern of a name; write one such as *.new")
    return texts
