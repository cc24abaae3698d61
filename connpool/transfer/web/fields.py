"""
The fields of a request that say something about a file.

Digests are structured fields (RFC 9651) and read by C{http_sf}; it takes base64 of any
length, so the length of a digest is looked at here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import http_sf

from connpool.errors import TransferError, Unsupported
from connpool.transfer.records import ASKABLE_DURABILITIES, IF_EXISTS
from connpool.transfer.web.head import Head
from connpool.transfer.web.problems import Problem

__all__ = [
    "DIGESTS",
    "digestsOf",
    "durabilityOf",
    "modifiedOf",
    "preferencesOf",
    "ruleAskedFor",
    "wantedDigest",
    "wholeSize",
    "writeDigest",
]

#: The digests that vouch for content (RFC 9530 section 5): name to hash.  CRC-32 and MD5 are
#: not among them.
DIGESTS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}

_RANGE = re.compile(rb"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_SECONDS = re.compile(rb"(-?\d{1,12})(?:\.(\d{1,9}))?")


def wholeSize(head: Head) -> int | None:
    """
    Find out how many bytes a C{PUT} has.

    C{Content-Range} is looked at: a client that resumes sends the rest of a file with it, and
    a server that ignores it stores the rest as the file.

    @return: bytes; L{None} if the client does not know.
    @raise Problem: it is not a whole file.
    """
    given = head.one(b"content-range")
    if given is None:
        return head.length
    found = _RANGE.fullmatch(given)
    if found is not None:
        first, last, size = map(int, found.groups())
        if first == 0 and last + 1 == size and head.length in {None, size}:
            return size
    raise Problem(
        400,
        "PUT stores whole files; to resume, create an upload by tus with POST and send the rest "
        "to the URL that it gets",
        "unsupported",
    )


def modifiedOf(head: Head) -> int | None:
    """
    @return: the time in C{X-OC-Mtime}, nanoseconds since the epoch; L{None} if there is none.
    """
    given = head.one(b"x-oc-mtime")
    if given is None:
        return None
    found = _SECONDS.fullmatch(given)
    if found is None:
        raise Problem(400, "X-OC-Mtime is a number of seconds since 1970")
    fraction = int((found[2] or b"0").ljust(9, b"0"))
    seconds = int(found[1])
    return seconds * 10**9 + (-fraction if found[1].startswith(b"-") else fraction)


def preferencesOf(head: Head) -> Mapping[str, str]:
    """
    @return: the preferences of C{Prefer} (RFC 7240), without their parameters; of one that
        comes twice the first counts.
    """
    found: dict[str, str] = {}
    for part in b",".join(head.all(b"prefer")).decode("latin-1").split(","):
        name, _, value = part.partition(";")[0].partition("=")
        found.setdefault(name.strip().lower(), value.strip().strip('"'))
    return found


def durabilityOf(preferences: Mapping[str, str]) -> str:
    """
    @return: the durability that is preferred, C{full} if none is.
    """
    return _choice(preferences, "durability", ASKABLE_DURABILITIES) or "full"


def ruleAskedFor(head: Head, preferences: Mapping[str, str]) -> str | None:
    """
    @return: the rule for a name that is taken, as the client asks for it; L{None} if it
        leaves that to the receiver.
    """
    if head.all(b"if-match") or head.all(b"if-unmodified-since"):
        raise Problem(412, "files have no versions here that a condition could name", "exists")
    # another value names versions that the client knows, and none of ours is among them
    if b"*" in {value.strip() for value in head.all(b"if-none-match")}:
        return "refuse"
    return _choice(preferences, "if-exists", IF_EXISTS)


def _choice(preferences: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str | None:
    value = preferences.get(name)
    if value is not None and value not in choices:
        raise Problem(400, f"Prefer: {name} is one of {', '.join(choices)}")
    return value


def _dictionary(name: str, values: Iterable[bytes]) -> Mapping[str, Any]:
    try:
        found = http_sf.parse(b", ".join(values), tltype="dictionary")
    except http_sf.StructuredFieldError as e:
        raise Problem(400, f"{name} is no dictionary (RFC 9651): {e}") from None
    assert isinstance(found, dict)
    return found


def readDigests(name: str, values: Iterable[bytes]) -> dict[str, bytes]:
    """
    @param name: of the field, for messages.
    @return: the digests in a field, by algorithm, of those in L{DIGESTS}.
    @raise Problem: one of them cannot be a digest of its algorithm, or none is known.
    """
    members = _dictionary(name, values)
    found = {}
    for algorithm, member in members.items():
        if algorithm not in DIGESTS:
            continue
        value = member[0] if isinstance(member, tuple) else member
        length = DIGESTS[algorithm]().digest_size
        if not isinstance(value, bytes) or len(value) != length:
            raise Problem(400, f"{name}: {algorithm} has {length} bytes, in base64, in colons")
        found[algorithm] = value
    if not found:
        raise _unknown(name)
    return found


def _unknown(name: str) -> TransferError:
    return Problem(400, f"{name}: digests are taken by {' and '.join(DIGESTS)}", Unsupported.code)


def digestsOf(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, bytes]:
    """
    @param fields: of a head or a trailer, names in lower case.
    @return: the digests that the file shall have, by algorithm.  The content of a PUT is all
        of the file, so both fields say the same.
    """
    fields = list(fields)
    found: dict[str, bytes] = {}
    for name in ("Repr-Digest", "Content-Digest"):
        values = [value for each, value in fields if each == name.lower().encode()]
        if not values:
            continue
        for algorithm, digest in readDigests(name, values).items():
            if found.setdefault(algorithm, digest) != digest:
                raise Problem(400, f"Repr-Digest and Content-Digest differ in {algorithm}")
    return found


def wantedDigest(head: Head) -> str | None:
    """
    @return: the algorithm that C{Want-Repr-Digest} likes best of ours; L{None} if it wants none.
    """
    values = head.all(b"want-repr-digest")
    if not values:
        return None
    members = _dictionary("Want-Repr-Digest", values)
    weights = {}
    for algorithm, member in members.items():
        weight = member[0] if isinstance(member, tuple) else member
        if algorithm in DIGESTS and isinstance(weight, int) and weight > 0:
            weights[algorithm] = weight
    return max(weights, key=lambda name: weights[name], default=None)


def writeDigest(digests: Mapping[str, bytes]) -> str:
    """
    @return: the value of C{Repr-Digest}.
    """
    return http_sf.ser({name: (digest, {}) for name, digest in digests.items()})
