"""
Texts that say where to connect: C{HOST:PORT} and client endpoint strings.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP6ClientEndpoint,
    clientFromString,
)
from twisted.internet.interfaces import IReactorPluggableNameResolver, IStreamClientEndpoint
from zope.interface import directlyProvides, providedBy

from connpool.addresses.descriptions import complaint, tokenize
from connpool.addresses.goaddress import isDomainName, parseLiteral
from connpool.addresses.hostport import parsePortNumber, splitHostPort
from connpool.addresses.names import resolverOf
from connpool.addresses.tls import clientTLS
from connpool.addresses.zones import checkZone
from connpool.errors import AddressError

__all__ = ["TRANSFER_PORT", "clientEndpoint", "clientString"]

#: The port of a file receiver, where a C{tcp:} or C{tls:} string names none.
TRANSFER_PORT = 8640

#: Arguments of C{tcp:} and C{tls:}, in the order in which Twisted takes them without a name.
_KEYS = {
    "tcp": ("host", "port", "timeout", "bindAddress"),
    "tls": (
        *("host", "port", "timeout", "bindAddress"),
        *("certificate", "privateKey", "trustRoots", "endpoint"),
    ),
}
_BRACKETS = re.compile(r"(tcp|tls):\[([^]]*)\]")


class _WithResolver:
    """
    A reactor whose names are looked up by L{connpool.addresses.NameResolver}.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.nameResolver = resolverOf(reactor)
        directlyProvides(self, providedBy(reactor), IReactorPluggableNameResolver)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


def clientEndpoint(
    reactor: Any, text: str, timeout: float = 30.0, *, ca: str | None = None
) -> IStreamClientEndpoint:
    """
    Read where C{--to} says to connect.

    @param text: C{HOST:PORT} (exactly one colon outside brackets; the port may be the
        name of a service), tried on every address of the name; or any client endpoint
        string, such as
        C{unix:/run/x.sock} or C{tls:example.com}, whose port is L{TRANSFER_PORT} unless
        it is given.
    @param timeout: seconds for each attempt to connect to C{HOST:PORT}.
    @param ca: a PEM file, or a directory of C{*.pem} files, of authorities to trust for
        C{tls:}; L{None} for the system's.
    @raise AddressError: for a text that is neither; one line.
    """
    try:
        # unix:http and tls:http are endpoints, not machines with the name of a kind
        host, port = splitHostPort(text, services=_numbersOnly)
    except AddressError:
        try:
            return clientString(reactor, text, timeout=timeout, ca=ca, port=TRANSFER_PORT)
        except AddressError:
            raise
        except Exception as e:
            kind = text.partition(":")[0]
            if not (isinstance(e, ValueError) and "Unknown endpoint type" in str(e)):
                raise AddressError(f"{text!r} is not a {kind}: endpoint: {complaint(e)}") from None
        host, port = splitHostPort(text)
    _noCA(ca, text)
    return _connecting(reactor, text, host, port, timeout, None)


def _numbersOnly(_name: str, _protocol: str) -> int | None:
    return None


def clientString(
    reactor: Any,
    text: str,
    *,
    timeout: float = 30.0,
    ca: str | None = None,
    port: int | None = None,
) -> IStreamClientEndpoint:
    r"""
    Do what Twisted's C{clientFromString} does, and more for two kinds:
    C{tls:HOST[:PORT][:trustRoots=FILE]} takes a PEM file as well as a directory, and
    says why a certificate is not trusted; C{tcp:} and C{tls:} take IPv6 addresses in
    brackets, and look names up with L{connpool.addresses.NameResolver}.

    @param timeout: seconds for C{tcp:} and C{tls:} strings that name none.
    @param ca: the same as C{trustRoots=}; only for C{tls:}.
    @param port: for C{tcp:} and C{tls:} strings that name none; L{None} if they must.
    @raise AddressError: for a C{tcp:} or C{tls:} string with a mistake, and for C{ca} with
        anything else.
    @raise Exception: whatever the parser of another kind raises.
    """
    kind = text.partition(":")[0]
    if kind not in _KEYS:
        _noCA(ca, text)
        endpoint: IStreamClientEndpoint = clientFromString(reactor, text)
        return endpoint
    bracketed = _BRACKETS.match(text)
    if bracketed:
        text = f"{kind}:host=" + bracketed[2].replace(":", r"\:") + text[bracketed.end() :]
    values = _values(kind, text)
    host = values.get("host", "")
    if not host:
        raise AddressError(f"{text!r} names no host; write {kind}:HOST:PORT")
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            raise AddressError(f"{text!r}: {host!r} is not a host name") from None
    bind = values.get("bindAddress")
    source = None if bind is None else (bind, 0)
    if kind == "tcp":
        _noCA(ca, text)
        return _connecting(
            reactor, text, host, _port(text, values, port), _seconds(text, values, timeout), source
        )
    if ca is not None and "trustRoots" in values:
        raise AddressError(f"--ca and trustRoots= in {text!r} say the same; give one of them")
    tls = clientTLS(
        host,
        values.get("trustRoots", ca),
        values.get("certificate"),
        values.get("privateKey"),
        what="--ca" if ca is not None else "trustRoots",
    )
    from connpool.tlstransport import TLSClientEndpoint

    if "endpoint" in values:
        return TLSClientEndpoint(reactor, tls, clientString(reactor, values["endpoint"]))
    seconds = _seconds(text, values, timeout)
    below = _connecting(reactor, text, host, _port(text, values, port), seconds, source)
    return TLSClientEndpoint(reactor, tls, below)


def _noCA(ca: str | None, text: str) -> None:
    if ca is not None:
        raise AddressError(f"--ca is about TLS, which {text!r} does not begin with; write tls:HOST")


def _values(kind: str, text: str) -> dict[str, str]:
    """
    @return: the arguments of an endpoint string, by name.
    """
    known = _KEYS[kind]
    positional, values = tokenize(text)
    # after host= in brackets come the others
    names = [name for name in known if name != "host" or "host" not in values]
    for name, value in zip(names, positional[1:], strict=False):
        if name in values:
            raise AddressError(f"{text!r} has {name} twice; give it once")
        values[name] = value
    unknown = sorted(set(values) - set(known))
    if unknown or len(positional) - 1 > len(names):
        more = f"unknown {', '.join(unknown)}" if unknown else "too many parts"
        raise AddressError(
            f"{text!r} has {more}; write {kind}:HOST:PORT, an IPv6 address in brackets, and "
            f"of {', '.join(known[2:])} what is needed as KEY=VALUE"
        )
    return values


def _port(text: str, values: dict[str, str], default: int | None) -> int:
    port = values.get("port")
    if port is None and default is not None:
        return default
    try:
        return parsePortNumber(port or "")
    except AddressError as e:
        raise AddressError(f"{text!r}: {e}") from None


def _seconds(text: str, values: dict[str, str], default: float) -> float:
    if "timeout" not in values:
        return default
    try:
        seconds = float(values["timeout"])
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise AddressError(f"{text!r}: timeout= is seconds above 0, a day at most")
    return seconds


def _connecting(
    reactor: Any,
    text: str,
    host: str,
    port: int,
    timeout: float,
    source: tuple[str, int] | None,
) -> IStreamClientEndpoint:
    checkZone(host)
    if "%" in host:
        # a zone: HostnameEndpoint would lose it
        return TCP6ClientEndpoint(reactor, host, port, timeout=timeout, bindAddress=source)
    if parseLiteral(host) is None and not isDomainName(host):
        raise AddressError(
            f"{text!r}: {host!r} is not a host name or address; "
            "a name is made of letters, digits and hyphens"
        )
    # no reactor: the text is only looked at
    looking = reactor if reactor is None else _WithResolver(reactor)
    return HostnameEndpoint(looking, host, port, timeout=timeout, bindAddress=source)
