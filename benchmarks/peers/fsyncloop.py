"""
C{python fsyncloop.py SOURCE TARGET}: each file written, synced, renamed; one after another.
"""

import os
import sys
from pathlib import Path

source, target = map(Path, sys.argv[1:])
for each in source.rglob("*"):
    if each.is_file():
        there = target / each.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        part = there.with_name(f".{there.name}")
        with part.open("wb") as file:
            file.write(each.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        part.rename(there)
