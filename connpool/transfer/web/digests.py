"""
The digests by which a client vouches for the bytes that it sends: C{Repr-Digest} of a file and
C{Content-Digest} of a body (RFC 9530), and C{Upload-Checksum} of tus.

The fields of RFC 9530 are structured (RFC 9651) and read by C{http_sf}; it takes base64 of any
length, so the length of a digest is looked at here.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from zlib import crc32

import attrs
import http_sf

from connpool.errors import DigestMismatch, Unsupported
from connpool.transfer.web.answers import Problem
from connpool.transfer.web.head import FieldValues, Head

__all__ = ["TUS_ALGORITHMS", "Digests", "wantedDigest", "wholeSHA256", "writeDigests"]


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


#: The algorithms that C{Repr-Digest} and C{Content-Digest} may name here.
_REGISTERED = ("sha-256", "sha-512")
_HASHES: Mapping[str, Callable[[], Any]] = {
    "sha-256": hashlib.sha256,
    "sha-512": hashlib.sha512,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32": _CRC32,
}
#: Those that find an accident, and verify nothing (RFC 9530 section 5).
_WEAK = {"md5", "crc32"}
#: The same by their names in tus, the best first.
TUS_ALGORITHMS = {name.replace("-", ""): name for name in _HASHES}
_CHECKSUM = b"upload-checksum"
_OF_FILES = {b"repr-digest", b"content-digest", b"want-repr-digest", b"trailer"}


@attrs.define(eq=False)
class Digests:
    """
    The digests of the bytes of one request.

    @ivar computed: the digests of what came, once L{compare} was called.
    """

    #: those that the head has, by algorithm, and the reader of those behind the body, if such
    #: are announced
    _told: dict[str, bytes] = attrs.field(factory=dict)
    _behind: Callable[[FieldValues], Mapping[str, bytes]] | None = None
    #: algorithms beside the told ones
    _also: Iterable[str] = ()
    computed: dict[str, bytes] = attrs.field(factory=dict, init=False)
    _hashers: dict[str, Any] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._hashers = {name: _HASHES[name]() for name in (*self._told, *self._also)}

    @classmethod
    def ofFile(cls, head: Head) -> Digests:
        """
        Return those of the file that a C{PUT} brings, those that the client wants to know too.
        """
        if _OF_FILES.isdisjoint(head.fields):
            return cls()
        told, wanted = _digestsIn(head.fields), wantedDigest(head)
        if any(b"digest" in name for name in head.words(b"trailer")):
            return cls(told, _digestsIn, _REGISTERED)
        return cls(told, None, () if wanted is None else (wanted,))

    @classmethod
    def ofBody(cls, head: Head) -> Digests:
        """
        Return those of the body of a request that brings a part of a file.
        """
        value = head.one(_CHECKSUM)
        if value is not None:
            return cls(_readChecksum(value))
        if _CHECKSUM in head.words(b"trailer"):
            return cls({}, _checksumBehind, _HASHES)
        return cls(_read(b"content-digest", head.fields))

    def add(self, name: str) -> None:
        """
        Compute this one, too.
        """
        self._hashers.setdefault(name, _HASHES[name]())

    def __bool__(self) -> bool:
        """
        Tell whether the client has told one, or is going to.
        """
        return bool(self._told) or self._behind is not None

    @property
    def vouches(self) -> bool:
        """
        Tell whether they verify the bytes if they match, as far as is known.
        """
        return self._behind is not None or bool(self._told.keys() - _WEAK)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """
        Take the bytes that follow.
        """
        for hasher in self._hashers.values():
            hasher.update(data)

    def compare(self, trailers: FieldValues) -> None:
        """
        Compare the digests that were told, those behind the body too, with those of the bytes
        that came; each must have been announced.
        """
        if self._behind is not None:
            behind, self._behind = self._behind, None
            self._told.update(behind(trailers))
        elif trailers and _digestsIn(trailers):
            raise Problem(400, "a digest behind the body is announced by Trailer: Repr-Digest")
        self.computed = {name: hasher.digest() for name, hasher in self._hashers.items()}
        for name, digest in self._told.items():
            if self.computed[name] != digest:
                raise DigestMismatch(f"the bytes that came have another {name} than was told")


def wholeSHA256(head: Head) -> bytes | None:
    """
    Return the digest that the whole file shall have, of which the request brings a part.
    """
    told = _read(b"repr-digest", head.fields)
    if told.keys() - {"sha-256"}:
        raise Problem(400, "Repr-Digest of an upload is by sha-256", Unsupported.code)
    return told.get("sha-256")


def _digestsIn(fields: FieldValues) -> dict[str, bytes]:
    """
    Return the digests that a file shall have, by algorithm.  The content of a C{PUT} is all of the
    file, so both fields say the same.
    """
    found = _read(b"repr-digest", fields)
    for algorithm, digest in _read(b"content-digest", fields).items():
        if found.setdefault(algorithm, digest) != digest:
            raise Problem(400, f"Repr-Digest and Content-Digest differ in {algorithm}")
    return found


def _dictionary(name: bytes, fields: FieldValues) -> Mapping[str, Any]:
    """
    @return: the members of a field, none if it is not there.
    """
    values = fields.get(name)
    if not values:
        return {}
    try:
        found: Any = http_sf.parse(b", ".join(values), tltype="dictionary")
    except http_sf.StructuredFieldError as e:
        raise Problem(400, f"{name.decode()} is no dictionary (RFC 9651): {e}") from None
    # members have parameters beside them
    return {key: each[0] if isinstance(each, tuple) else each for key, each in found.items()}


def _read(name: bytes, fields: FieldValues) -> dict[str, bytes]:
    """
    Return the digests of a field, of those that are known; none if it is not there.
    """
    members = _dictionary(name, fields)
    found = {each: members[each] for each in _REGISTERED if each in members}
    for algorithm, digest in found.items():
        length = _HASHES[algorithm]().digest_size
        if not isinstance(digest, bytes) or len(digest) != length:
            raise Problem(
                400, f"{name.decode()}: {algorithm} has {length} bytes, in base64, in colons"
            )
    if not found and name in fields:
        known = " and ".join(_REGISTERED)
        raise Problem(400, f"{name.decode()}: digests are taken by {known}", Unsupported.code)
    return found


def _readChecksum(value: bytes) -> dict[str, bytes]:
    algorithm, _, coded = value.decode("latin-1").partition(" ")
    name = TUS_ALGORITHMS.get(algorithm)
    if name is None:
        known = ", ".join(TUS_ALGORITHMS)
        raise Problem(400, f"Upload-Checksum is by one of {known}", Unsupported.code)
    length = _HASHES[name]().digest_size
    try:
        digest = base64.b64decode(coded, validate=True)
    except ValueError:
        digest = b""
    if len(digest) != length:
        raise Problem(400, f"Upload-Checksum by {algorithm} is the base64 of {length} bytes")
    return {name: digest}


def _checksumBehind(trailers: FieldValues) -> dict[str, bytes]:
    values = trailers.get(_CHECKSUM, ())
    if len(values) != 1:
        raise Problem(400, "the trailer Upload-Checksum was announced and did not come")
    return _readChecksum(values[0])


def wantedDigest(head: Head) -> str | None:
    """
    @return: the algorithm that C{Want-Repr-Digest} likes best of ours; L{None} if it wants none.
    """
    weights = _dictionary(b"want-repr-digest", head.fields)
    wanted = {
        name: weights[name]
        for name in _REGISTERED
        if isinstance(weights.get(name), int) and weights[name] > 0
    }
    return max(wanted, key=lambda name: wanted[name], default=None)


def writeDigests(digests: Mapping[str, bytes]) -> str:
    """
    @return: the value of C{Repr-Digest}.
    """
    return http_sf.ser({name: (digest, {}) for name, digest in digests.items()})
