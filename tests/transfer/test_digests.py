"""
Block digests and roots, against the vectors and by hand.
"""

import hashlib
import json
import struct
from pathlib import Path

import pytest

from connpool.errors import Unsupported
from connpool.transfer.digests import (
    BLOCK_SIZE,
    DIGESTS,
    MAX_BLOCKS,
    blockCount,
    chooseBlockSize,
    digestNamed,
    rootOf,
    rootsOfBlocks,
)

VECTORS = json.loads((Path(__file__).parent / "vectors" / "digests.json").read_text())


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['digest']}-{v['size']}")
def test_vector(vector):
    digest = digestNamed(vector["digest"])
    pattern = bytes(range(251))
    size, block = vector["size"], vector["blockSize"]
    data = (pattern * (size // 251 + 1))[:size]
    blocks = [digest.of(data[at : at + block]) for at in range(0, size, block)]
    assert [d.hex() for d in blocks] == vector["blocks"]
    assert len(blocks) == blockCount(size, block)
    assert rootOf(digest, size, block, blocks).hex() == vector["root"]


@pytest.mark.parametrize("digest", DIGESTS.values(), ids=lambda d: d.name)
def test_rootsOfManySmallFiles(digest):
    """
    One after the other, empty ones too, each has the root that it has alone.
    """
    of = rootsOfBlocks(digest)
    for data in (b"x", b"", b"y" * 5000, memoryview(b"abc")[1:], b"x", b"z" * BLOCK_SIZE):
        blocks = [digest.of(data)] if len(data) else []
        assert of(data) == rootOf(digest, len(data), BLOCK_SIZE, blocks)


def test_rootByHand():
    d = hashlib.sha256(b"x").digest()
    expected = hashlib.sha256(b"cpt1-root\0" + struct.pack(">QQ", 1, 4096) + d).digest()
    assert rootOf(DIGESTS["sha256"], 1, 4096, [d]) == expected


@pytest.mark.parametrize(
    ("size", "block"),
    [
        (0, 1 << 20),
        (1, 1 << 20),
        (1 << 36, 1 << 20),
        ((1 << 36) + 1, 2 << 20),
        (2**63 - 1, 1 << 47),
    ],
)
def test_blocksAreDoubledUntilThereAreFewEnough(size, block):
    assert chooseBlockSize(size) == block
    assert blockCount(size, block) <= MAX_BLOCKS


def test_unknownDigest():
    with pytest.raises(Unsupported, match="md5"):
        digestNamed("md5")
