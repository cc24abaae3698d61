"""
What the tests of stores share.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed

from connpool.transfer import Offer, RelativeName

BLOCK = 1 << 16


def offer(name: str = "report.txt", **values: Any) -> Offer:
    """
    An offer as a protocol would make it.
    """
    values.setdefault("transferId", os.urandom(16).hex())
    values.setdefault("digest", "sha256")
    values.setdefault("blockSize", BLOCK)
    return Offer(name=RelativeName.parse(name), **values)


def settled(result: Any) -> Deferred[Any]:
    """
    What C{put} gave, whether at once or later.
    """
    return result if isinstance(result, Deferred) else succeed(result)


async def fill(partial: Any, content: bytes, *, block: int = BLOCK) -> None:
    """
    Write what is missing of C{content}, recording the digest of each block.
    """
    for number in range(-(-len(content) // block)):
        start = number * block
        data = content[start : start + block]
        if number in partial.digests:
            continue
        waiting = partial.write(start, memoryview(data))
        if waiting is not None:
            await waiting
        partial.record(number, hashlib.sha256(data).digest())


def visible(root: Path) -> dict[str, bytes]:
    """
    Every file below C{root} that is not the store's own.
    """
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink() and ".connpool" not in path.parts
    }
