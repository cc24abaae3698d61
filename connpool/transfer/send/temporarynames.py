"""
Names of files that are not finished yet.
"""

from __future__ import annotations

import fnmatch
import re

__all__ = ["USUAL", "TemporaryNames"]

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


_USUAL = re.compile("|".join([*map(fnmatch.translate, USUAL), f"(?s:{_RSYNC})\\Z"]))


class TemporaryNames:
    """
    The names that programs give to what they have not finished.

    @param usual: whether L{USUAL} and rsync's are such names, or none.
    """

    def __init__(self, usual: bool = True) -> None:
        self._usual = usual

    def __contains__(self, name: str) -> bool:
        """
        @param name: a component of a path.
        """
        return self._usual and _USUAL.match(name) is not None
