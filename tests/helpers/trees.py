"""
Looks at directories in which programs are at work.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from stat import S_ISREG

from connpool.transfer.stores.journal import Journal


def filesBelow(directory: Path) -> dict[Path, os.stat_result]:
    """
    The regular files below a directory.  Those that go between the look at their directory and
    that at them are left out, and so is a directory that goes.
    """
    found = {}
    for where, _, names in os.walk(directory):
        for path in (Path(where, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                if S_ISREG((status := path.stat()).st_mode):
                    found[path] = status
    return found


def publishedBelow(root: Path) -> dict[str, bytes]:
    """
    The content of the files in the directory of a receiver or a sender, without their own.
    """
    found = {}
    for path in filesBelow(root):
        name = path.relative_to(root)
        if not any(part.startswith(".connpool") for part in name.parts):
            with contextlib.suppress(FileNotFoundError):
                found[str(name)] = path.read_bytes()
    return found


def checkpointed(root: Path) -> int:
    """
    The bytes of unfinished files that a receiver has written down in its journals: it does so
    every few seconds.
    """
    journals = [path for path in filesBelow(root / ".connpool/partials") if path.suffix]
    return sum(Journal.read(path.read_bytes()).received for path in journals)
