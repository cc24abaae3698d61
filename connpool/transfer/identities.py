"""
The operator's table of senders: the directory and the limits of each.

Nothing a peer says becomes part of a path.  A user name or a certificate is
only looked up here, and the directory is what the operator wrote beside it::

    [defaults]
    max-rate = "20M"

    [users.alice]
    directory = "alice"
    max-file-size = "10G"

    [certificates."backup.example"]
    directory = "machines/backup"
    read = true

C{[defaults]} holds for everybody whose entry does not say otherwise.

A certificate is found by the SHA-256 fingerprint of its DER form (64
hexadecimal digits) or by its subject's one common name, compared exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from connpool.errors import ConnpoolError, NameRefused
from connpool.transfer.names import RelativeName, displayName

__all__ = ["ANONYMOUS", "Identities", "IdentitiesError", "Identity", "Limits"]

#: The principal of a sender without credentials.
ANONYMOUS = "anonymous"

#: The beginning of a principal's name that is a certificate's, so that no user name is one.
_CERTIFICATE = "certificate:"

#: The keys of an entry: the argument of L{Identity} for each, and the function that reads it.
_Keys = Mapping[str, tuple[str, Callable[[Any], Any]]]

_FINGERPRINT = re.compile(r"[0-9a-f]{64}\Z")


class IdentitiesError(ConnpoolError, ValueError):
    """
    The table has a mistake; one line that names its place.
    """

    code = "bad-identities"
    exitCode = 2


@attrs.frozen(kw_only=True)
class Limits:
    """
    Numbers of an operator.  L{None} is no limit, or the receiver's own where these are
    a principal's.

    @ivar maxConnections: native sessions at once.
    @ivar maxTransfers: at once; as many small files that come in one piece may
        be on their way to the disk beside them.
    @ivar maxFileSize: bytes.
    @ivar maxBytes: bytes received in any 24 hours.
    @ivar maxFiles: files stored in any 24 hours.
    @ivar maxRate: bytes/s.
    @ivar minimumRate: bytes/s a sender must keep up, averaged over
        C{idleTimeout}; 0 for none.
    @ivar idleTimeout: seconds without a byte that end a transfer.
    @ivar maxTime: seconds that a transfer may take.
    """

    maxConnections: int | None = None
    maxTransfers: int | None = None
    maxFileSize: int | None = None
    maxBytes: int | None = None
    maxFiles: int | None = None
    maxRate: float | None = None
    minimumRate: float | None = None
    idleTimeout: float | None = None
    maxTime: float | None = None


@attrs.frozen
class Identity(Limits):
    """
    The directory and the limits of one sender.

    @ivar principal: the name in receipts, logs and of its partials.
    @ivar directory: where its files go; L{None} for the root.
    @ivar quota: bytes that its unfinished transfers may take; L{None} for the
        receiver's own limit.
    @ivar read: C{own} if it may read what is in its directory, C{everything} for all of the
        store; empty for nothing.
    """

    principal: str
    directory: RelativeName | None = None
    quota: int | None = None
    read: str = ""


@attrs.frozen
class Identities:
    """
    The table, as it was read.

    @ivar users: user name to identity.
    @ivar certificates: fingerprint or common name to identity.
    """

    users: Mapping[str, Identity] = attrs.field(factory=dict)
    certificates: Mapping[str, Identity] = attrs.field(factory=dict)

    @classmethod
    def parse(cls, text: str, asSize: Callable[[str], int] = int) -> Identities:
        """
        Read a table.

        @param text: TOML, as the module's docstring shows.
        @param asSize: reads a size that is a text; raises L{ValueError}.
        @raise IdentitiesError: if the table has a mistake.
        """
        import tomllib  # most receivers have no table

        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as e:
            raise IdentitiesError(str(e)) from None
        for key in table:
            if key not in {"defaults", "users", "certificates"}:
                raise IdentitiesError(
                    f"[{displayName(key)}] is not known; write [defaults], [users.NAME] or "
                    "[certificates.NAME]"
                )
        keys = _keysOf(asSize)
        defaults = _entry("[defaults]", table.get("defaults", {}), keys)
        return cls(
            _section(table, "users", "", defaults, keys),
            _section(table, "certificates", _CERTIFICATE, defaults, keys),
        )

    @property
    def reading(self) -> bool:
        """
        Tell whether anybody may read.
        """
        return any(each.read for each in (*self.users.values(), *self.certificates.values()))

    def ofUser(self, user: str) -> Identity | None:
        """
        @return: the identity of a user whose password was right; L{None} if
            the table does not have it.
        """
        return self.users.get(user)

    def ofCertificate(self, fingerprint: str, commonNames: list[str]) -> Identity | None:
        """
        Find a certificate in the table.

        @param fingerprint: SHA-256 of the DER form, lower-case hexadecimal.
        @param commonNames: all of the subject; more than one is nobody's.
        @return: the identity of a verified certificate, or L{None}.
        """
        found = self.certificates.get(fingerprint)
        if found is None and len(commonNames) == 1 and not _FINGERPRINT.match(commonNames[0]):
            found = self.certificates.get(commonNames[0])
        return found


def _section(
    table: Mapping[str, Any], section: str, prefix: str, defaults: Mapping[str, Any], keys: _Keys
) -> dict[str, Identity]:
    entries = table.get(section, {})
    if not isinstance(entries, dict):
        raise IdentitiesError(f"{section} is not a table; write [{section}.NAME]")
    identities = {}
    for name, entry in entries.items():
        where = f"[{section}.{displayName(name)}]"
        if (
            not name
            or name == ANONYMOUS
            or name.startswith(_CERTIFICATE)
            or len(name.encode()) > 200
        ):
            raise IdentitiesError(f"{where}: this name cannot be used; choose another")
        found = Identity(prefix + name, **{**defaults, **_entry(where, entry, keys)})
        if found.read == "own" and found.directory is None:
            raise IdentitiesError(
                f"{where}: read = true needs a directory of its own; give it one, or write "
                'read = "everything"'
            )
        identities[name] = found
    return identities


def _entry(where: str, entry: Any, keys: _Keys) -> dict[str, Any]:
    """
    @return: the arguments of L{Identity} that C{entry} gives.
    """
    if not isinstance(entry, dict):
        raise IdentitiesError(f"{where} is not a table; write {where}")
    found = {}
    for key, value in entry.items():
        if key not in keys:
            raise IdentitiesError(
                f"{where}: {displayName(key)} is not known; write {', '.join(sorted(keys))}"
            )
        name, read = keys[key]
        try:
            found[name] = read(value)
        except (ValueError, NameRefused) as e:
            raise IdentitiesError(f"{where}: {key}: {e}") from None
    return found


def _keysOf(asSize: Callable[[str], int]) -> _Keys:
    def size(value: Any) -> int:
        if isinstance(value, str):
            return asSize(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise IdentitiesError("write a number of bytes, or a text with a unit")
        return value

    return {
        "directory": ("directory", _directory),
        "idle-timeout": ("idleTimeout", _seconds),
        "max-bytes-per-day": ("maxBytes", size),
        "max-connections": ("maxConnections", _count),
        "max-file-size": ("maxFileSize", size),
        "max-files-per-day": ("maxFiles", _count),
        "max-rate": ("maxRate", lambda value: size(value) or None),
        "max-time": ("maxTime", _seconds),
        "max-transfers": ("maxTransfers", _count),
        "min-rate": ("minimumRate", size),
        "quota": ("quota", size),
        "read": ("read", _reads),
    }


def _directory(value: Any) -> RelativeName:
    if not isinstance(value, str):
        raise IdentitiesError('write a text, such as "alice"')
    return RelativeName.parse(value)


def _reads(value: Any) -> str:
    if value is True or value is False:
        return "own" if value else ""
    if value != "everything":
        raise IdentitiesError('write true, false or "everything"')
    return "everything"


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise IdentitiesError("write a whole number of at least 1")
    return value


def _seconds(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise IdentitiesError("write seconds above 0")
    return float(value)
