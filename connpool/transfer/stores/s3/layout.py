"""
The keys of the objects, and how they are read.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TypeVar

import attrs
import msgspec

from connpool.errors import NameRefused, StartFailed, StoreError
from connpool.transfer.names import INTERNAL, RelativeName, caselessForm, displayName
from connpool.transfer.stores.s3.calls import ABSENT, Conflict, Found, Get, Put

__all__ = ["Layout", "agreement", "decoded", "newToken"]

#: The longest key that S3 has.
MAX_KEY_BYTES = 1024
_T = TypeVar("_T")


def newToken() -> str:
    return secrets.token_hex(16)


def decoded(found: Found, kind: type[_T]) -> _T:
    """
    Read an object of this store.

    @raise StoreError: it is none.
    """
    try:
        return msgspec.json.decode(found.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise StoreError(
            f"the {kind.__name__.lower()} {found.key} in the bucket cannot be read; start this"
            " receiver in its newest version, or if somebody else wrote there, remove the object"
        ) from None


def _hash(*texts: str | bytes) -> str:
    raw = (text.encode() if isinstance(text, str) else text for text in texts)
    return hashlib.sha256(b"\0".join(raw)).hexdigest()


@attrs.frozen
class Layout:
    """
    The keys of one store.

    @ivar prefix: that all published files have; empty, or it ends with a slash.
    @ivar portable: whether names that differ only in case or composition are one name.
    """

    prefix: str = ""
    portable: bool = True

    @property
    def private(self) -> str:
        """
        The prefix of what is not published.
        """
        return f"{INTERNAL}/{self.prefix}"

    @property
    def logs(self) -> str:
        """
        The prefix of all logs.
        """
        return f"{self.private}log/"

    def check(self, name: RelativeName) -> None:
        """
        @raise NameRefused: an engine would take the name for another one, or not at all.
        """
        if "\\" in name.path:
            raise NameRefused(
                f'"{name}": it has a backslash, which some S3 engines read as a slash'
            )
        if len(self.file(name.path).encode()) > MAX_KEY_BYTES:
            raise NameRefused(
                f'"{displayName(name.path)[:80]}…": with the prefix of the store it is longer than'
                f" {MAX_KEY_BYTES} bytes, the most that S3 takes"
            )

    def file(self, path: str) -> str:
        return self.prefix + path

    def claim(self, path: str) -> str:
        name = _hash(caselessForm(path) if self.portable else path)
        return f"{self.private}names/{name[:2]}/{name}"

    def partials(self, principal: str | None = None, network: str = "") -> str:
        """
        Return the prefix of the pointers of everybody, of one principal, or of those of its
        senders that are counted apart.
        """
        owner = "" if principal is None else f"{_hash(principal)[:32]}/"
        part = f"{_hash(network)[:32]}/" if network else ""
        return f"{self.private}partials/{owner}{part}"

    def partial(self, principal: str, network: str, resumeKey: bytes) -> str:
        """
        Return the key of the pointer to the upload of a resume key.
        """
        return self.partials(principal, network) + _hash(network, resumeKey)

    def record(self, token: str, number: int | None = None) -> str:
        """
        Return the key of a record of an upload, or the prefix of all; they are in the order of
        the numbers.
        """
        return f"{self.logs}{token}/" + ("" if number is None else f"{number:08}")

    def tails(self, token: str) -> str:
        return f"{self.private}tail/{token}/"


async def agreement(prefix: str, names: str) -> None:
    """
    Compare the settings that all receivers of one prefix must have in common; a core.

    @raise StartFailed: another one has others.
    """
    key = f"{Layout(prefix).private}store"
    mine = msgspec.json.encode({"version": 1, "names": names})
    if not isinstance(await Put(key, mine, ABSENT), Conflict):
        return
    found = await Get(key)
    if isinstance(found, Found) and found.body != mine:
        try:
            others = msgspec.json.decode(found.body, type=dict[str, int | str])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise StartFailed(
                f"the settings of this bucket and prefix cannot be read; if no receiver uses them,"
                f" remove the object {key}"
            ) from None
        shown = msgspec.json.encode(others).decode()[:200]
        raise StartFailed(
            f"the receivers of this bucket and prefix have {shown}, this one"
            f" {mine.decode()}: give it the same --names, or another prefix"
        )
