"""
The target of a request: the page, an upload, or the name of a file or directory.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from urllib.parse import quote, unquote_to_bytes

import attrs

from connpool.errors import NameRefused
from connpool.transfer.names import INTERNAL
from connpool.transfer.web.answers import Problem

__all__ = ["TOP_LIST", "Kind", "Target", "locate", "parseTarget"]

_ABSOLUTE = re.compile(r"https?://([^/?#]*)(/[^?#]*)?", re.IGNORECASE)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
#: The list of what is at the top, where C{/} is the page of those who send.
TOP_LIST = INTERNAL.encode() + b"/list/"
_UPLOAD = re.compile(INTERNAL.encode() + rb"/u/([A-Za-z0-9_-]{1,128})")


class Kind(Enum):
    """
    The kinds of targets.
    """

    #: C{*}, the receiver as a whole
    SERVER = auto()
    #: C{/}
    ROOT = auto()
    #: of a file, and of a directory: a path that ends with a slash
    NAME, DIRECTORY = auto(), auto()
    #: an upload that was created before
    UPLOAD = auto()
    #: the list of what is at the top
    LIST = auto()
    #: another name of the receiver's own
    OURS = auto()


@attrs.frozen
class Target:
    """
    A target that was read.

    @ivar path: the name in bytes, percent signs decoded once, without the slash it begins
        with; nothing of it was checked.
    @ivar depth: directories between it and C{/}, as the client counts them.
    @ivar token: of an upload.
    @ivar authority: the host and port of a target in absolute form.
    """

    kind: Kind
    path: bytes = b""
    depth: int = 0
    token: str = attrs.field(default="", repr=False)
    authority: str | None = None


def parseTarget(method: str, text: str) -> Target:
    """
    Read a target.
    """
    if text == "*":
        if method != "OPTIONS":
            raise Problem(400, "the target * is for OPTIONS")
        return Target(Kind.SERVER)
    authority = None
    if not text.startswith("/"):
        absolute = _ABSOLUTE.fullmatch(text)
        if absolute is None:
            raise Problem(400, "a target begins with / or http://, and has no ? and no #")
        authority, text = absolute[1], absolute[2] or "/"
    if text.startswith("/?") and method in {"GET", "HEAD"}:
        text = "/"  # the page, by a link that somebody has added to
    if "?" in text or "#" in text:
        raise NameRefused("a name in a URL has no ? and no #; write %3F and %23")
    if _BAD_ESCAPE.search(text):
        raise NameRefused("a percent sign in a URL begins %XX; write %25 for the sign itself")
    path, token = unquote_to_bytes(text[1:]), ""
    if not path:
        kind = Kind.ROOT
    elif path.partition(b"/")[0].lower() == INTERNAL.encode():
        kind = Kind.LIST if path == TOP_LIST else Kind.OURS
        if upload := _UPLOAD.fullmatch(path):
            kind, token = Kind.UPLOAD, upload[1].decode()
    else:
        kind = Kind.DIRECTORY if path.endswith(b"/") else Kind.NAME
    return Target(kind, path, text.count("/") - 1, token, authority)


def locate(path: str, depth: int, base: str = "") -> str:
    """
    Return a reference to a file or an upload: relative to the request's URL, so that it is right
    behind every proxy, unless there is a C{base}, the URL of the top as clients see it.
    """
    quoted = quote(path.encode("utf-8", "surrogateescape"), safe="/")
    # ./ keeps a colon in the first part from being read as a scheme
    return (base or "../" * depth or "./") + quoted
