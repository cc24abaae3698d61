"""
The digest of the body of one request: C{Upload-Checksum} of tus, or C{Content-Digest}.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

from connpool.errors import DigestMismatch
from connpool.transfer.web.fields import DIGESTS, readDigests
from connpool.transfer.web.head import Head
from connpool.transfer.web.problems import Problem

__all__ = ["ALGORITHMS", "Checksum", "checksumOf", "contentDigestOf"]

_FIELD = b"upload-checksum"


class _CRC32:
    """
    CRC-32 in the shape of a hash.
    """

    digest_size = 4

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: Any) -> None:
        self._value = crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


#: The algorithms of tus, the best first.
ALGORITHMS: Mapping[str, Callable[[], Any]] = {
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32": _CRC32,
}
#: Those that find an accident, and verify nothing.
_WEAK = {"md5", "crc32"}


class Checksum:
    """
    The digest of one body.

    @param told: by algorithm; L{None} if it comes behind the body.
    @param make: makes the hash of an algorithm.
    @ivar hashers: the hashes that may be needed.
    """

    def __init__(
        self, told: Mapping[str, bytes] | None, make: Mapping[str, Callable[[], Any]]
    ) -> None:
        self._told = told
        self.hashers = {name: make[name]() for name in (make if told is None else told)}

    @property
    def vouches(self) -> bool:
        """
        Tell whether it verifies the bytes, if it matches, as far as is known.
        """
        return self._told is None or bool(set(self._told) - _WEAK)

    def compare(
        self, computed: Mapping[str, bytes], trailers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """
        Compare the digest that was told.

        @raise TransferError: it differs, or is missing.
        """
        if self._told is None:
            values = [value for name, value in trailers if name == _FIELD]
            if len(values) != 1:
                raise Problem(400, "the trailer Upload-Checksum was announced and did not come")
            self._told = _read(values[0])
        for name, digest in self._told.items():
            if computed[name] != digest:
                raise DigestMismatch(f"the bytes that came have another {name} than was told")


def _read(value: bytes) -> dict[str, bytes]:
    name, _, coded = value.decode("latin-1").partition(" ")
    if name not in ALGORITHMS:
        raise Problem(400, f"Upload-Checksum is by one of {', '.join(ALGORITHMS)}", "unsupported")
    length = ALGORITHMS[name]().digest_size
    try:
        digest = base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != length:
        raise Problem(400, f"Upload-Checksum by {name} is the base64 of {length} bytes")
    return {name: digest}


def checksumOf(head: Head) -> Checksum | None:
    """
    @return: the checksum of a request of tus; L{None} if it brings none.
    """
    value = head.one(_FIELD)
    if value is not None:
        return Checksum(_read(value), ALGORITHMS)
    trailers = {name.strip().lower() for name in b",".join(head.all(b"trailer")).split(b",")}
    return Checksum(None, ALGORITHMS) if _FIELD in trailers else None


def contentDigestOf(head: Head) -> Checksum | None:
    """
    @return: the C{Content-Digest} of a request (RFC 9530); L{None} if it brings none.
    """
    values = head.all(b"content-digest")
    return Checksum(readDigests("Content-Digest", values), DIGESTS) if values else None
