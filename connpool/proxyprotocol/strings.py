r"""
The endpoint strings C{proxied:}, C{secured:} and C{proxyheader:}.

Another endpoint string follows the prefix; keys of both are written
in one list: C{proxied:tcp:443:interface=10.0.0.1:trusted=10.0.0.0/8}.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import (
    quoteStringArgument,
    serverFromString,
)

from connpool.addresses.clientstrings import clientString
from connpool.errors import AddressError
from connpool.proxyprotocol.client import ProxyHeaderEndpoint
from connpool.proxyprotocol.connection import Policy
from connpool.proxyprotocol.datagram import DatagramHeaders
from connpool.proxyprotocol.header import MAX_HEADER
from connpool.proxyprotocol.secured import SecuredEndpoint, ServerCertificate
from connpool.proxyprotocol.server import ProxiedEndpoint, Trusted

__all__ = ["parseDatagramHeaders", "parseProxied", "parseProxyHeader", "parseSecured", "parseTrust"]


def parseTrust(prefix: str, keywords: dict[str, str]) -> tuple[Trusted, Policy, float]:
    """
    Take C{trusted}, C{policy} and C{timeout} out of C{keywords}.

    @raise AddressError: for a missing or wrong one.
    """
    trusted = Trusted.parse(filter(None, keywords.pop("trusted", "").split(",")))
    if not (trusted.networks or trusted.unix):
        raise AddressError(
            f"{prefix} needs trusted=, the proxies to believe, for example "
            r"trusted=10.0.0.0/8,fd00\:\:/8 or trusted=unix"
        )
    policy = keywords.pop("policy", Policy.REQUIRE.value)
    timeout = keywords.pop("timeout", "5")
    try:
        seconds = float(timeout)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise AddressError(
            f"{prefix} timeout={timeout!r}: write seconds, up to {MAX_TIMEOUT_SECONDS:g}"
        )
    try:
        return trusted, Policy(policy), seconds
    except ValueError:
        known = ", ".join(each.value for each in Policy)
        raise AddressError(f"{prefix} policy={policy!r} is not one of {known}") from None


def _maxHeader(prefix: str, keywords: dict[str, str]) -> int:
    """
    Take C{maxHeader} out of C{keywords}.

    @raise AddressError: for a wrong one.
    """
    text = keywords.pop("maxHeader", str(MAX_HEADER))
    size = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not LEAST_MAX_HEADER <= size <= MOST_MAX_HEADER:
        raise AddressError(
            f"{prefix} maxHeader={text!r}: write bytes, {LEAST_MAX_HEADER} to {MOST_MAX_HEADER}"
        )
    return size


def parseDatagramHeaders(keywords: dict[str, str]) -> DatagramHeaders:
    """
    Read the keywords of C{proxied:udp:…:trusted=LIST[:policy=…]}.

    @raise AddressError: with the mistake in one line.
    """
    trusted, policy, _ = parseTrust("proxied:udp:", keywords)
    maxHeader = _maxHeader("proxied:udp:", keywords)
    if trusted.unix:
        raise AddressError("proxied:udp: takes no trusted=unix; list the proxies' addresses")
    return DatagramHeaders(trusted, policy, maxHeader)


#: The bounds of C{maxHeader}, in bytes: a header with addresses and one small field,
#: and the longest that its length field can tell.
LEAST_MAX_HEADER = 256
MOST_MAX_HEADER = 16 + 65535

#: The longest C{timeout}, in seconds: a peer holds a descriptor so long.
MAX_TIMEOUT_SECONDS = 3600.0


def parseProxied(reactor: Any, *args: str, **kwargs: str) -> ProxiedEndpoint:
    r"""
    C{proxied:ENDPOINT:trusted=LIST[:policy=require|use|ignore|reject][:timeout=SECONDS]},
    and C{maxHeader=BYTES}.

    @param kwargs: C{trusted} is a list of CIDRs with commas between, or
        C{unix} for whoever connects to a unix socket.
    @raise AddressError: with the mistake in one line.
    """
    trusted, policy, timeout = parseTrust("proxied:", kwargs)
    maxHeader = _maxHeader("proxied:", kwargs)
    endpoint = serverFromString(reactor, _inner("proxied:", args, kwargs))
    return ProxiedEndpoint(reactor, endpoint, trusted, policy, timeout, maxHeader)


def parseSecured(reactor: Any, *args: str, **kwargs: str) -> SecuredEndpoint:
    """
    C{secured:ENDPOINT:certificate=FILE:privateKey=FILE[:trustRoots=FILE]}.

    @raise AddressError: with the mistake in one line, also for files that
        cannot be used.
    """
    certificate = kwargs.pop("certificate", "")
    privateKey = kwargs.pop("privateKey", certificate)
    if not certificate:
        raise AddressError("secured: needs certificate=FILE and privateKey=FILE")
    trustRoots = kwargs.pop("trustRoots", None)
    if trustRoots == "":
        # the path of the working directory
        raise AddressError(
            "secured: trustRoots= names no file; leave it out to ask for no certificate"
        )
    shown = ServerCertificate(certificate, privateKey, trustRoots)
    endpoint = serverFromString(reactor, _inner("secured:", args, kwargs))
    return SecuredEndpoint(reactor, endpoint, shown)


def parseProxyHeader(reactor: Any, *args: str, **kwargs: str) -> ProxyHeaderEndpoint:
    """
    C{proxyheader:ENDPOINT}: connect on our own behalf, and say who we are.
    """
    endpoint = clientString(reactor, _inner("proxyheader:", args, kwargs))
    return ProxyHeaderEndpoint(endpoint, own=True)


def _inner(prefix: str, args: tuple[str, ...], kwargs: dict[str, str]) -> str:
    """
    The endpoint string behind the prefix.
    """
    if not args:
        raise AddressError(f"{prefix} wraps another endpoint, for example {prefix}tcp:443")
    keys = [f"{key}={quoteStringArgument(value)}" for key, value in kwargs.items()]
    return ":".join([*map(quoteStringArgument, args), *keys])
