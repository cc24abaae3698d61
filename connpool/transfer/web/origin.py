"""
Requests that a web page makes in the name of somebody who visits it.

Theory of operation
===================
A page of another site can make a browser send us a form or a simple C{fetch}, and it can point
a name of its own at our address.  It can choose neither C{Host} nor C{Origin}:

  - C{Host} must be an address, a name of this machine, or one that the operator gave.
  - C{Origin}, where there is one, must be the same host and port, byte for byte, or one that
    the operator listed.  The scheme is not compared: behind a proxy that ends TLS we do not
    know it.
  - Old browsers leave C{Origin} out; then C{Sec-Fetch-Site} and C{Referer} must not speak
    of another site.  C{Sec-Fetch-Mode} decides nothing: programs send it too.

No cookies are used and no answer allows credentials, so a password that a browser keeps for
us is worth nothing to another site.
"""

from __future__ import annotations

import re
from functools import lru_cache

import attrs

from connpool.addresses.hosts import hostOf, isOwnHost
from connpool.transfer.web.answers import Fields, Problem
from connpool.transfer.web.head import METHODS, Head
from connpool.transfer.web.target import Target

__all__ = ["Origins", "originOf"]

#: Methods that change nothing.
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_ORIGIN = re.compile(r"(https?)://([^/?#@\s]+)")

#: Fields that scripts of listed origins may send, and may read in answers.
_ALLOWED = (
    "Authorization, Content-Type, Content-Disposition, Content-Digest, Repr-Digest, "
    "Want-Repr-Digest, If-None-Match, Prefer, X-OC-Mtime, X-HTTP-Method-Override, "
    "X-Requested-With, X-Request-ID, Tus-Resumable, Upload-Length, Upload-Defer-Length, "
    "Upload-Offset, Upload-Metadata, Upload-Checksum, Upload-Concat"
)
_EXPOSED = (
    "Location, Repr-Digest, Retry-After, Tus-Resumable, Tus-Version, Tus-Extension, "
    "Tus-Max-Size, Tus-Checksum-Algorithm, Upload-Offset, Upload-Length, Upload-Defer-Length, "
    "Upload-Metadata, Upload-Expires"
)
_PREFLIGHT_SECONDS = 86_400


def originOf(url: str) -> str:
    """
    @return: the origin of a URL, lower case, without the scheme's own port.
    """
    found = _ORIGIN.match(url.lower())
    if found is None:
        raise ValueError(f"{url!r} does not begin with http:// or https:// and a host")
    scheme, host = found.groups()
    return f"{scheme}://{host.removesuffix(':443' if scheme == 'https' else ':80')}"


@lru_cache(maxsize=64)
def _isOwn(host: str, hosts: frozenset[str]) -> bool:
    return isOwnHost(hostOf(host), hosts)


@attrs.frozen
class Origins:
    """
    The names under which we are asked, and the origins of other sites whose pages may send; C{*}
    for all.
    """

    hosts: frozenset[str] = frozenset({"localhost"})
    listed: frozenset[str] = frozenset()

    def checkHost(self, head: Head, target: Target) -> None:
        """
        @raise Problem: the request was sent to a name that is not ours.
        """
        given = head.one(b"host")
        if given is None:
            return  # HTTP/1.0, and never a browser
        text = given.decode("latin-1")
        if not _isOwn(text, self.hosts):
            raise Problem(
                421, "this name is not the receiver's; see its option --web-host", "forbidden"
            )
        if target.authority is not None and target.authority.lower() != text.lower():
            raise Problem(400, "the target and Host name different hosts", closes=True)

    def checkOrigin(self, head: Head) -> None:
        """
        @raise Problem: the request was made by a page of another site.
        """
        if head.method in _SAFE:
            return
        host, origins = (head.one(b"host") or b"").decode("latin-1"), head.all(b"origin")
        if origins:
            origin = origins[0].decode("latin-1")
            found = _ORIGIN.fullmatch(origin)  # "null" among others is none
            own = found is not None and bool(host) and found[2] == host
            allowed = len(origins) == 1 and (own or self._lists(origin))
        else:
            allowed = head.words(b"sec-fetch-site").isdisjoint({b"cross-site", b"same-site"})
            for referer in head.all(b"referer"):
                found = _ORIGIN.match(referer.decode("latin-1").lower())
                allowed = allowed and found is not None and found[2] == host.lower()
        if not allowed:
            raise Problem(
                403,
                "a page of another site may not send here; see --web-origin of the receiver",
                "forbidden",
            )

    def _lists(self, origin: str) -> bool:
        return origin in self.listed or ("*" in self.listed and bool(_ORIGIN.fullmatch(origin)))

    def shared(self, head: Head) -> Fields:
        """
        @return: the fields by which a browser gives an answer to a page of a listed origin.
        """
        if not self.listed:
            return ()
        vary = ("Vary", "Origin")
        origin = b" ".join(head.all(b"origin")).decode("latin-1")
        if not self._lists(origin):
            return [vary]
        allowed = ("Access-Control-Allow-Origin", origin)
        return [vary, allowed, ("Access-Control-Expose-Headers", _EXPOSED)]

    def preflight(self, head: Head) -> Fields:
        """
        Return the fields of the answer to a preflight of a listed origin; none for another request.
        """
        if not head.all(b"access-control-request-method") or len(self.shared(head)) < 2:
            return ()
        return [
            ("Access-Control-Allow-Methods", ", ".join(METHODS)),
            ("Access-Control-Allow-Headers", _ALLOWED),
            ("Access-Control-Max-Age", str(_PREFLIGHT_SECONDS)),
        ]
