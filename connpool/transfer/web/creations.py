"""
The secrets of uploads, and those uploads that have no byte yet.  Pure.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from hashlib import blake2b

import attrs

from connpool.errors import Busy
from connpool.transfer.web.answers import Problem

__all__ = ["CREATION_SECONDS", "MAX_CREATIONS", "MAX_OWN_CREATIONS", "Creations", "Token"]

#: Seconds that an upload without a byte is remembered.
CREATION_SECONDS = 3600.0
#: Uploads without a byte, in all and of one principal or network.
MAX_CREATIONS, MAX_OWN_CREATIONS = 10_000, 100

_SECRET_BYTES, _NETWORK_BYTES = 32, 6
#: Characters of a secret; the network, if there is one, follows.
_SECRET_CHARACTERS = 43


@attrs.frozen
class Token:
    """
    The secret of an upload, with its C{text} as it stands in the upload's URL.
    """

    text: str = attrs.field(repr=False)
    _secret: bytes = attrs.field(repr=False)

    @classmethod
    def new(cls, network: str) -> Token:
        """
        Make one; C{network} is that of a sender without credentials, else empty.
        """
        secret = secrets.token_bytes(_SECRET_BYTES)
        tag = blake2b(network.encode(), digest_size=_NETWORK_BYTES).digest() if network else b""
        return cls(_coded(secret) + _coded(tag), secret)

    @classmethod
    def read(cls, text: str) -> Token:
        """
        Read one.
        """
        coded = text[:_SECRET_CHARACTERS]
        try:
            secret = base64.b64decode(coded + "=", b"-_", validate=True)
        except ValueError:
            raise noUpload() from None
        if _coded(secret) != coded:
            raise noUpload()  # there is one way to write it
        return cls(text, secret)

    @property
    def network(self) -> str:
        """
        The network of a sender without credentials, in a form that does not say which it is.
        """
        return self.text[_SECRET_CHARACTERS:]

    def key(self, purpose: bytes) -> bytes:
        """
        Derive a key that does not give the token.
        """
        return hmac.digest(self._secret, b"connpool upload " + purpose, "sha256")


def _coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def noUpload() -> Problem:
    """
    The answer to a URL of which nothing is known, or that is somebody else's.
    """
    return Problem(404, "there is no such upload, or no longer", "expired")


class Creations:
    """
    The uploads without a byte, by their tokens, the oldest first.
    """

    def __init__(self) -> None:
        #: principal and network of each
        self._owners: dict[str, tuple[str, str]] = {}
        self._own: dict[tuple[str, str], dict[str, None]] = {}

    def add(self, token: str, owner: tuple[str, str], evicts: bool) -> str | None:
        """
        Remember one of an owner, a principal and a network.  Return one that is forgotten instead,
        if C{evicts} lets the oldest of the owner make way.
        """
        evicted = None
        own = self._own.get(owner, {})
        if len(own) >= MAX_OWN_CREATIONS:
            if not evicts:
                raise Busy(f"{len(own)} uploads of yours have no byte yet; send these first")
            evicted = next(iter(own))
            self.discard(evicted)
        if len(self._owners) >= MAX_CREATIONS:
            raise Busy("too many uploads without a byte are remembered; try later")
        self._owners[token] = owner
        self._own.setdefault(owner, {})[token] = None
        return evicted

    def discard(self, token: str) -> None:
        """
        Forget one, if it is remembered.
        """
        owner = self._owners.pop(token, None)
        if owner is not None:
            own = self._own[owner]
            del own[token]
            if not own:
                del self._own[owner]
