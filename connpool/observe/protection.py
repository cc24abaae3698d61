"""
Protection of the status page from readers that it is not for.

The page only reads, so there is nothing to forge; what is left is reading: from
another machine (the listener's allow list, or a
password here), and from a web page that the operator happens to visit, which
can point a name of its own at our address (DNS rebinding) but cannot choose
another C{Host} than that name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger

from connpool.addresses.hosts import hostOf, isOwnHost, withOwnHosts

__all__ = ["Protection"]

_log = Logger()


@attrs.frozen
class Protection:
    """
    @ivar hosts: names under which this process is reached, lower case.
        Addresses, C{localhost} and this machine's own name always are.
    @ivar checker: an L{twisted.cred.checkers.ICredentialsChecker} for names and
        passwords; L{None} to ask for none.
    """

    hosts: frozenset[str] = attrs.field(default=frozenset(), converter=withOwnHosts)
    checker: Any = None

    def permitsHost(self, headers: Iterable[bytes]) -> bool:
        """
        @param headers: the request's C{Host} headers.  None at all is what
            HTTP/1.0 health checks send, and never a browser.
        """
        given = list(headers)
        if not given:
            return True
        host = hostOf(given[0].decode("latin-1"))
        return len(given) == 1 and isOwnHost(host, self.hosts)

    async def permitsUser(self, user: bytes, password: bytes) -> bool:
        """
        Ask the checker, which there is.
        """
        credentials = UsernamePassword(user, password)
        try:
            await maybeDeferred(self.checker.requestAvatarId, credentials)
        except UnauthorizedLogin:
            return False
        except Exception:
            _log.failure("the checker of --status-auth failed")
            return False
        return True
