"""
Identities of senders: by passwords through C{twisted.cred}, or by client certificates.

Guessing is slowed down where it comes from: an IPv4 /24 or IPv6 /64 may be
wrong L{GUESS_BURST} times at once and then once every L{GUESS_INTERVAL_SECONDS} seconds, in a table
of fixed size.  The hash that places a network in the table is keyed, so nobody
outside can choose whom to lock out with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from twisted.cred import strcred
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from zope.interface import implementer

from connpool.addresses import clientOf
from connpool.addresses.networks import networkOf
from connpool.errors import AuthenticationFailed
from connpool.interfaces import IAuthenticator
from connpool.regularfiles import readRegular
from connpool.services.checkers import passwordChecker
from connpool.services.options import ServiceOptions, asSize
from connpool.tokenbucket import TokenBuckets
from connpool.transfer.identities import Identities, IdentitiesError, Identity

__all__ = ["GUESS_BURST", "GUESS_INTERVAL_SECONDS", "Authenticator", "CredentialOptions"]

#: Wrong passwords of one network that are answered at once.
GUESS_BURST = 10

#: Seconds for each one more.
GUESS_INTERVAL_SECONDS = 6.0

_SLOTS = 4096


class CredentialOptions(ServiceOptions, strcred.AuthOptionMixin):
    """
    The options of an L{Authenticator}, for a plugin's C{Options} to inherit.
    """

    supportedInterfaces = (IUsernamePassword,)

    def opt_auth(self, checker: str) -> None:
        """
        Ask senders for a password: file:PATH, or see --help-auth (repeatable).
        """
        self.collect("auth", checker)

    def opt_identities(self, path: str) -> None:
        """
        Table of who may send, where to and how much (TOML).
        """
        self.once("identities", path)

    def postOptions(self) -> None:
        super().postOptions()
        self.setdefault("identities", None)
        self["auth"] = [passwordChecker("auth", text) for text in self.get("auth", [])]
        if self["identities"] is not None:
            self.convert("identities", _readIdentities)


def _readIdentities(path: str) -> Identities:
    try:
        text = readRegular(path).decode()
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"cannot read {path!r}: {getattr(e, 'strerror', e)}") from None
    try:
        return Identities.parse(text, asSize)
    except IdentitiesError as e:
        raise ValueError(f"{path}: {e}") from None


@implementer(IAuthenticator)
class Authenticator:
    """
    @param clock: times the guessing.
    @param checkers: of passwords; with none, only certificates count.
    @param identities: the operator's table; L{None}: every user whose password
        is right is its own principal.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        checkers: Sequence[ICredentialsChecker] = (),
        identities: Identities | None = None,
    ) -> None:
        self._clock = clock
        self._latest: float = clock.seconds()
        self._lag = 0.0
        self._checkers = [
            checker for checker in checkers if IUsernamePassword in checker.credentialInterfaces
        ]
        self.takesPasswords = bool(self._checkers)
        self._identities = identities
        self._wrong = TokenBuckets(_SLOTS, 1.0 / GUESS_INTERVAL_SECONDS, GUESS_BURST)
        self._key = os.urandom(16)

    def certified(self, transport: Any) -> Identity | None:
        if self._identities is None:
            return None
        presented = getattr(transport, "getPeerCertificate", lambda: None)()
        if presented is None:
            return None
        certificate: x509.Certificate = presented.to_cryptography()
        names = [
            str(attribute.value)
            for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        ]
        return self._identities.ofCertificate(certificate.fingerprint(hashes.SHA256()).hex(), names)

    def password(self, transport: Any, user: str, secret: bytes) -> Deferred[Identity]:
        return Deferred.fromCoroutine(self._password(transport, user, secret))

    async def _password(self, transport: Any, user: str, secret: bytes) -> Identity:
        network = networkOf(clientOf(transport).host or "", ipv4=24)
        slot = hash((self._key, network)) % _SLOTS
        now = self._now()
        if self._wrong.free(slot, now) < 1:
            raise AuthenticationFailed("too many wrong passwords from this network; wait a minute")
        # charged before the check: guesses made at once do not slip through
        self._wrong.take(slot, 1, now)
        identity = await self._check(user, secret)
        if identity is None:
            raise AuthenticationFailed("user or password is wrong")
        self._wrong.take(slot, -1, now)
        return identity

    def _now(self) -> float:
        """
        Read the clock, but never an earlier time than before: Twisted's is the wall
        clock, and one that is set back would shut out those who came in the time that
        it takes again.
        """
        now = self._clock.seconds() + self._lag
        self._lag += max(self._latest - now, 0.0)
        self._latest = max(self._latest, now)
        return self._latest

    async def _check(self, user: str, secret: bytes) -> Identity | None:
        try:
            credentials = UsernamePassword(user.encode(), secret)
        except UnicodeEncodeError:
            return None
        for checker in self._checkers:
            try:
                await maybeDeferred(checker.requestAvatarId, credentials)
            except UnauthorizedLogin:
                continue
            except Exception:
                self._log.failure("{checker} cannot check passwords", checker=checker)
                continue
            if self._identities is None:
                return Identity(user)
            return self._identities.ofUser(user)
        return None
