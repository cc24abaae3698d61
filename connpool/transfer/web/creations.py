"""
The secrets of uploads, and those uploads that have no byte yet.  Pure.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Callable
from hashlib import blake2b

import attrs

from connpool.errors import Busy
from connpool.transfer.web.problems import Problem

__all__ = [
    "CREATION_SECONDS",
    "MAX_CREATIONS",
    "MAX_OWN_CREATIONS",
    "Creations",
    "Token",
    "noUpload",
]

#: Seconds that an upload without a byte is remembered.
CREATION_SECONDS = 3600.0
#: Uploads without a byte, in all and of one principal or network.
MAX_CREATIONS, MAX_OWN_CREATIONS = 10_000, 100

_SECRET_BYTES, _NETWORK_BYTES = 32, 6
Owner = tuple[str, str]
#: Characters of a secret; the network, if there is one, follows.
_SECRET_CHARACTERS = 43


@attrs.frozen
class Token:
    """
    The secret of an upload.

    @ivar text: as it stands in the upload's URL.
    @ivar network: the network of a sender without credentials, in a form that does not say
        which it is.
    """

    text: str = attrs.field(repr=False)
    _secret: bytes = attrs.field(repr=False)
    network: str = ""

    @classmethod
    def new(cls, network: str) -> Token:
        """
        Make one.

        @param network: of a sender without credentials; else empty.
        """
        tag = blake2b(network.encode(), digest_size=_NETWORK_BYTES).digest() if network else b""
        return cls._of(secrets.token_bytes(_SECRET_BYTES), _coded(tag))

    @classmethod
    def read(cls, text: str) -> Token:
        """
        Read one.

        @raise Problem: it is none.
        """
        try:
            secret = base64.b64decode(text[:_SECRET_CHARACTERS] + "=", b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise noUpload() from None
        token = cls._of(secret, text[_SECRET_CHARACTERS:])
        if token.text != text or len(secret) != _SECRET_BYTES:
            raise noUpload()
        return token

    @classmethod
    def _of(cls, secret: bytes, network: str) -> Token:
        return cls(_coded(secret) + network, secret, network)

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

    @param seconds: the time.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        #: token to its owner and its end
        self._all: dict[str, tuple[Owner, float]] = {}
        self._own: dict[Owner, dict[str, None]] = {}

    def add(self, token: str, owner: Owner, end: float, evicts: bool) -> str | None:
        """
        Remember one.

        @param owner: the principal and the network.
        @param end: when it is forgotten.
        @param evicts: whether the oldest of its owner may make way for it.
        @return: one that is forgotten instead.
        @raise Busy: there are too many.
        """
        evicted = None
        own = self._own.get(owner, {})
        if len(own) >= MAX_OWN_CREATIONS:
            if not evicts:
                raise Busy(f"{len(own)} uploads of yours have no byte yet; send these first")
            evicted = next(iter(own))
            self.discard(evicted)
        if len(self._all) >= MAX_CREATIONS:
            raise Busy("too many uploads without a byte are remembered; try later")
        self._all[token] = owner, end
        self._own.setdefault(owner, {})[token] = None
        return evicted

    def discard(self, token: str) -> None:
        """
        Forget one, if it is remembered.
        """
        if token in self._all:
            owner, _ = self._all.pop(token)
            own = self._own[owner]
            del own[token]
            if not own:
                del self._own[owner]

    def expired(self) -> list[str]:
        """
        Forget those that are too old, and return them.
        """
        gone = []
        now = self._seconds()
        for token, (_, end) in self._all.items():
            if end > now:
                break
            gone.append(token)
        for token in gone:
            self.discard(token)
        return gone
