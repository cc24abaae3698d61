"""
Which directory and limits belong to whom: a table that the operator writes.

Nothing a peer says becomes part of a path.  A user name or a certificate is
only looked up here, and the directory is what the operator wrote beside it::

    [users.alice]
    directory = "alice"
    max-file-size = "10G"

    [certificates."backup.example"]
    directory = "machines/backup"

A certificate is found by the SHA-256 fingerprint of its DER form (64
hexadecimal digits) or by its subject's one common name, compared exactly.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from connpool.errors import ConnpoolError, NameRefused
from connpool.transfer.names import RelativeName, displayName

__all__ = ["ANONYMOUS", "Identities", "IdentitiesError", "Identity"]

#: The principal of who did not say who it is.
ANONYMOUS = "anonymous"

#: What stands before a certificate's key in the name of its principal, so that
#: no user name is one.
_CERTIFICATE = "certificate:"

_FINGERPRINT = re.compile(r"[0-9a-f]{64}\Z")


class IdentitiesError(ConnpoolError, ValueError):
    """
    The table has a mistake; one line that names its place.
    """

    code = "bad-identities"
    exitCode = 2


@attrs.frozen
class Identity:
    """
    What one sender may do.

    @ivar principal: the name in receipts, logs and of its partials.
    @ivar directory: where its files go; L{None} for the root.
    @ivar maxFileSize: bytes; L{None} for the receiver's own limit.
    @ivar maxTransfers: at once; L{None} for the receiver's own limit.
    @ivar maxRate: bytes/s of all its transfers; L{None} for no limit of its own.
    """

    principal: str
    directory: RelativeName | None = None
    maxFileSize: int | None = None
    maxTransfers: int | None = None
    maxRate: int | None = None


@attrs.frozen
class Identities:
    """
    @ivar users: user name to identity.
    @ivar certificates: fingerprint or common name to identity.
    """

    users: Mapping[str, Identity] = attrs.field(factory=dict)
    certificates: Mapping[str, Identity] = attrs.field(factory=dict)

    @classmethod
    def parse(cls, text: str, asSize: Callable[[str], int] = int) -> Identities:
        """
        @param text: TOML, as the module's docstring shows.
        @param asSize: reads a size that is a text; raises L{ValueError}.
        @raise IdentitiesError: for anything else.
        """
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as e:
            raise IdentitiesError(str(e)) from None
        for key in table:
            if key not in {"users", "certificates"}:
                raise IdentitiesError(
                    f"[{displayName(key)}] is not known; write [users.NAME] or [certificates.NAME]"
                )
        return cls(
            _section(table, "users", "", asSize),
            _section(table, "certificates", _CERTIFICATE, asSize),
        )

    def ofUser(self, user: str) -> Identity | None:
        """
        @return: the identity of a user whose password was right; L{None} if
            the table does not have it.
        """
        return self.users.get(user)

    def ofCertificate(self, fingerprint: str, commonNames: list[str]) -> Identity | None:
        """
        @param fingerprint: SHA-256 of the DER form, lower-case hexadecimal.
        @param commonNames: all of the subject; more than one is nobody's.
        @return: the identity of a verified certificate, or L{None}.
        """
        found = self.certificates.get(fingerprint)
        if found is None and len(commonNames) == 1 and not _FINGERPRINT.match(commonNames[0]):
            found = self.certificates.get(commonNames[0])
        return found


def _section(
    table: Mapping[str, Any], section: str, prefix: str, asSize: Callable[[str], int]
) -> dict[str, Identity]:
    entries = table.get(section, {})
    if not isinstance(entries, dict):
        raise IdentitiesError(f"{section} is not a table; write [{section}.NAME]")
    return {
        name: _identity(section, prefix, name, entry, asSize) for name, entry in entries.items()
    }


def _identity(
    section: str, prefix: str, name: str, entry: Any, asSize: Callable[[str], int]
) -> Identity:
    where = f"[{section}.{displayName(name)}]"
    if not isinstance(entry, dict):
        raise IdentitiesError(f"{where} is not a table; write {where}")
    if not name or name == ANONYMOUS or name.startswith(_CERTIFICATE) or len(name.encode()) > 200:
        raise IdentitiesError(f"{where}: this name cannot be used; choose another")
    known = {"directory", "max-file-size", "max-rate", "max-transfers"}
    for key in entry:
        if key not in known:
            raise IdentitiesError(
                f"{where}: {displayName(key)} is not known; write {', '.join(sorted(known))}"
            )
    return Identity(
        prefix + name,
        _directory(where, entry.get("directory")),
        _size(where, "max-file-size", entry, asSize),
        _count(where, entry.get("max-transfers")),
        _size(where, "max-rate", entry, asSize) or None,
    )


def _directory(where: str, value: Any) -> RelativeName | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise IdentitiesError(f'{where}: directory is a text, such as "alice"')
    try:
        return RelativeName.parse(value)
    except NameRefused as e:
        raise IdentitiesError(f"{where}: directory: {e}") from None


def _size(
    where: str, key: str, entry: Mapping[str, Any], asSize: Callable[[str], int]
) -> int | None:
    value = entry.get(key)
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return asSize(value)
    except ValueError as e:
        raise IdentitiesError(f"{where}: {key}: {e}") from None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise IdentitiesError(f"{where}: {key} is a number of bytes, or a text with a unit")
    return value


def _count(where: str, value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise IdentitiesError(f"{where}: max-transfers is a whole number of at least 1")
    return value
