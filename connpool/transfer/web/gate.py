"""
The judgement over a request before anything is done for it: the host it asks for, the page
that made it, and who is asking.

Theory of operation
===================
A proxy on this machine launders trust: what comes through it looks local.  So the fields by
which proxies say that they forward grant nothing, but withdraw: such a request is not local.
It is taken only where the operator has declared the proxy, with the C{https} URL that it
serves.

Credentials are read only where nobody can listen.  A right answer holds for the connection
and these very bytes; any other is asked again.
"""

from __future__ import annotations

import base64
import os
from contextlib import suppress
from typing import Any

import attrs
from twisted.logger import Logger

from connpool.addresses import clientOf
from connpool.addresses.networks import networkOf
from connpool.errors import AuthenticationFailed, Forbidden
from connpool.interfaces import IAuthenticator
from connpool.tokenbucket import TokenBuckets
from connpool.transfer.identities import ANONYMOUS, Identity
from connpool.transfer.names import displayName
from connpool.transfer.passwords import credentialsAreSafe
from connpool.transfer.receive.quotas import Account
from connpool.transfer.receive.reception import Reception
from connpool.transfer.web.head import Head

__all__ = ["Gate", "Sender"]

#: Fields by which proxies say that they forward.
_FORWARDING = frozenset(
    {b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"}
    | {b"via", b"x-forwarded-port", b"x-forwarded-server", b"x-forwarded-by", b"x-client-ip"}
)
#: Wrong passwords for one user that are answered at once, and seconds for each one more.
_GUESS_BURST, _GUESS_INTERVAL_SECONDS, _SLOTS = 10, 6.0, 4096


class Sender:
    """
    The client of one connection.

    @ivar peer: its name in logs.
    @ivar local: connected directly on this machine.
    @ivar identity: the operator's entry for it; L{None} while there is none.
    @ivar shared: others may come from the same address: a proxy forwards the present request.
    @ivar authorization: the last C{Authorization} that was right, and whose it is.
    @ivar accounts: in which the connection is counted.
    """

    def __init__(self, transport: Any) -> None:
        address = transport.getPeer()
        host = getattr(address, "host", None) or getattr(address, "name", None) or "unix"
        self.transport = transport
        self.peer = displayName(host)
        self.local = clientOf(transport).local
        self.identity: Identity | None = None
        self.shared = False
        self.authorization: tuple[bytes, Identity] | None = None
        self.accounts: tuple[Account, ...] = ()

    @property
    def principal(self) -> str:
        return ANONYMOUS if self.identity is None else self.identity.principal

    @property
    def network(self) -> str:
        """
        The address of one without an entry, of IPv6 the first 64 bits; else empty.
        """
        return networkOf(self.peer) if self.identity is None else ""

    def leave(self) -> None:
        accounts, self.accounts = self.accounts, ()
        for account in accounts:
            account.disconnect()


@attrs.define(eq=False)
class Gate:
    """
    The gate of a door; C{proxied} if the operator has declared a proxy.
    """

    _log = Logger()

    _clock: Any
    _reception: Reception
    _authenticator: IAuthenticator | None
    _proxied: bool
    _wrong: TokenBuckets = attrs.field(
        factory=lambda: TokenBuckets(_SLOTS, 1.0 / _GUESS_INTERVAL_SECONDS, _GUESS_BURST)
    )
    _key: bytes = attrs.field(factory=lambda: os.urandom(16))

    def checkPlace(self, head: Head, sender: Sender) -> None:
        """
        @raise Forbidden: it is not known where the client is.
        """
        sender.shared = sender.local and _forwarded(head)
        if sender.shared and not self._proxied:
            raise Forbidden(
                "this request came through a proxy, so it is not local; tell the receiver the "
                "proxy's address with --web-url https://…"
            )

    async def identify(self, head: Head, sender: Sender) -> None:
        """
        Find out who is asking, and count the connection among theirs.
        """
        if self._authenticator is not None:
            sender.identity = await self._identity(self._authenticator, head, sender)
        accounts = self._reception.quotas.accounts(sender.identity)
        if accounts != sender.accounts:
            sender.leave()
            for account in accounts:
                account.connect()
                sender.accounts += (account,)

    async def _identity(
        self, authenticator: IAuthenticator, head: Head, sender: Sender
    ) -> Identity:
        identity = authenticator.certified(sender.transport)
        if identity is not None:
            return identity
        if not authenticator.takesPasswords:
            raise Forbidden("a client certificate that the receiver knows is needed")
        # a shared one came through the proxy that the operator has declared
        if not (sender.shared or credentialsAreSafe(sender.transport)):
            raise Forbidden("credentials are needed, and are taken only within TLS")
        given = head.one(b"authorization")
        if given is None:
            raise AuthenticationFailed("a user and a password are needed")
        if sender.authorization is not None and sender.authorization[0] == given:
            return sender.authorization[1]
        user, secret = readCredentials(given)
        # behind a proxy all clients have one address, so guesses are counted for users too
        slot, now = hash((self._key, user)) % _SLOTS, self._clock.seconds()
        if _forwarded(head) and self._wrong.free(slot, now) < 1:
            raise AuthenticationFailed("too many wrong passwords for this user; wait a minute")
        try:
            identity = await authenticator.password(sender.transport, user, secret)
        except Exception as e:
            self._wrong.take(slot, 1, now)
            self._reception.recent.deniedEntry(sender.peer)
            if isinstance(e, AuthenticationFailed):
                raise
            self._log.failure("credentials could not be checked")
            raise AuthenticationFailed("user or password is wrong") from None
        sender.authorization = given, identity
        return identity


def _forwarded(head: Head) -> bool:
    """
    Tell whether a proxy says that it forwards the request.
    """
    return not _FORWARDING.isdisjoint(head.fields)


def readCredentials(value: bytes) -> tuple[str, bytes]:
    """
    Return the user and the password of C{Authorization}: C{Basic} (RFC 7617), or C{Bearer} with the
    same base64.
    """
    scheme, _, coded = value.partition(b" ")
    if scheme.lower() in {b"basic", b"bearer"}:
        with suppress(ValueError):
            user, colon, secret = base64.b64decode(coded.strip(), validate=True).partition(b":")
            if colon:
                return user.decode("utf-8"), secret
    raise AuthenticationFailed("credentials are Basic or Bearer, base64 of USER:PASSWORD in UTF-8")
