"""
The fields of a request that say something about a file, but its digests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from connpool.transfer.records import ASKABLE_DURABILITIES, IF_EXISTS
from connpool.transfer.web.head import Head
from connpool.transfer.web.problems import Problem

__all__ = ["durabilityOf", "modifiedOf", "preferencesOf", "rangeOf", "ruleAskedFor", "wholeSize"]

_RANGE = re.compile(rb"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_SECONDS = re.compile(rb"(-?\d{1,12})(?:\.(\d{1,9}))?")


def rangeOf(head: Head) -> tuple[int, int, int] | None:
    """
    @return: the first and the last byte in C{Content-Range}, and the size of the file, if
        the body can be that; else L{None}.
    """
    found = _RANGE.fullmatch(head.one(b"content-range") or b"")
    if found is None:
        return None
    first, last, size = map(int, found.groups())
    length = last + 1 - first
    fits = 0 < length <= size - first and head.length in {None, length}
    return (first, last, size) if fits else None


def wholeSize(head: Head) -> int | None:
    """
    Find out how many bytes a C{PUT} has.

    C{Content-Range} is looked at: a client that resumes sends the rest of a file with it, and
    a server that ignores it stores the rest as the file.

    @return: bytes; L{None} if the client does not know.
    @raise Problem: it is not a whole file.
    """
    if not head.all(b"content-range"):
        return head.length
    found = rangeOf(head)
    if found is None or found[:2] != (0, found[2] - 1):
        raise Problem(
            400,
            "PUT stores whole files; to resume, create an upload by tus with POST and send the "
            "rest to the URL that it gets",
            "unsupported",
        )
    return found[2]


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
