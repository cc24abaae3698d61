"""
Addresses as Go's C{net.ResolveTCPAddr} and C{net.ResolveUDPAddr} read them,
up to the look-up of names: pure.

The semantics are those of current Go.  Where Go 1.19, which printed the rows
in C{tests/addresses/go_addresses.jsonl}, differs, the test names the change.
Error texts are Go's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

import attrs

from connpool.addresses.hostport import joinHostPort
from connpool.addresses.servicenames import Services
from connpool.errors import AddressError, LookupFailed

__all__ = ["TCPAddr", "UDPAddr", "Wanted"]


@attrs.frozen
class TCPAddr:
    """
    An address to connect to or to listen on.

    @ivar ip: an IP address in canonical text, an IPv4-mapped one as IPv4;
        L{None} for every local address.
    @ivar port: 0 to 65535.
    @ivar zone: the IPv6 scope, an interface's name or index as text; C{""}
        for none.  It becomes an index when a socket connects.
    """

    ip: str | None = None
    port: int = 0
    zone: str = ""

    def __str__(self) -> str:
        zone = f"%{self.zone}" if self.zone else ""
        return joinHostPort(f"{self.ip or ''}{zone}", self.port)


@attrs.frozen
class UDPAddr(TCPAddr):
    """
    The same for UDP.
    """


#: An IP address and its zone.
Found = tuple[IPv4Address | IPv6Address, str]

_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def splitGo(address: str) -> tuple[str, str]:
    """
    C{net.SplitHostPort}.

    @return: host and port as written, either of which may be empty.
    @raise AddressError: with Go's text.
    """

    def wrong(why: str) -> AddressError:
        return AddressError(f"address {address}: {why}")

    colon = address.rfind(":")
    if colon < 0:
        raise wrong("missing port in address")
    opened = closed = 0
    if address[0] == "[":
        end = address.find("]")
        if end < 0:
            raise wrong("missing ']' in address")
        if end + 1 != colon:
            many = address[end + 1 : end + 2] == ":"
            raise wrong("too many colons in address" if many else "missing port in address")
        host = address[1:end]
        opened, closed = 1, end + 1
    else:
        host = address[:colon]
        if ":" in host:
            raise wrong("too many colons in address")
    if "[" in address[opened:]:
        raise wrong("unexpected '[' in address")
    if "]" in address[closed:]:
        raise wrong("unexpected ']' in address")
    return host, address[colon + 1 :]


def parsePort(protocol: str, text: str, services: Services) -> int:
    """
    C{net.LookupPort}: digits with an optional sign, or a service's name.

    @param protocol: C{tcp} or C{udp}.
    @raise AddressError: with Go's text.
    """
    digits = text[1:] if text[:1] in {"+", "-"} else text
    if not digits:
        return 0
    if not (digits.isascii() and digits.isdigit()):
        port = services(text.lower(), protocol)
        if port is None:
            raise AddressError(f"lookup {protocol}/{text}: unknown port")
        return port
    # bounded before int(): ten thousand digits are quadratic work
    significant = digits.lstrip("0") or "0"
    port = int(significant) if len(significant) <= 5 else 65536
    if port > 65535 or (port and text[0] == "-"):
        raise AddressError(f"address {text}: invalid port")
    return port


def parseLiteral(host: str) -> Found | None:
    """
    C{netip.ParseAddr}.

    @return: the address and its zone, an IPv4-mapped one as IPv4; L{None} if
        C{host} is not an IP address.
    """
    text, percent, zone = host.partition("%")
    try:
        if ":" not in text:
            return None if percent else (IPv4Address(text), "")
        if percent and not zone:
            return None
        address = IPv6Address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address, zone


def isDomainName(host: str) -> bool:
    """
    Say whether it makes sense to ask a name server (Go's function of this name).

    In particular labels have at most 63 characters, on which Python's own
    look-up breaks, and C{127.1} or C{0177.0.0.1}, which C libraries take for
    addresses, are not names.
    """
    name = host.removesuffix(".")
    labels = name.split(".")
    return (
        len(name) <= 253
        and all(_LABEL.fullmatch(label) for label in labels)
        and not all(label.isdigit() for label in labels)
    )


@attrs.frozen
class Wanted:
    """
    The network and address that were asked for.

    @ivar kind: L{TCPAddr} or L{UDPAddr}.
    @ivar host: as written, without brackets; C{""} for every local address.
    @ivar family: 4, 6, or 0 for both.
    @ivar prefer6: the address is in brackets, so IPv6 comes first.
    """

    kind: type[TCPAddr]
    host: str
    port: int
    family: int = 0
    prefer6: bool = False

    def literal(self) -> TCPAddr | None:
        """
        @return: the address, if no name has to be looked up.
        @raise AddressError: if it cannot be an address here.
        """
        if not self.host:
            return self.kind(None, self.port)
        found = parseLiteral(self.host)
        if found is not None:
            candidates = [found]
            if found[0] == IPv6Address("::"):
                candidates.append((IPv4Address("0.0.0.0"), ""))  # noqa: S104 - not listened on
            return self.choose(candidates)
        if not isDomainName(self.host):
            raise LookupFailed(f"lookup {self.host}: no such host")
        return None

    def choose(self, found: Sequence[Found]) -> TCPAddr:
        """
        The one address Go takes: of the wanted family, IPv4 first for names.

        @raise AddressError: if there is none of this family.
        """
        fitting = [each for each in found if self.family in {0, each[0].version}]
        if not fitting:
            raise AddressError(f"address {self.host}: no suitable address found")
        favourite = 6 if self.prefer6 else 4
        ip, zone = next((each for each in fitting if each[0].version == favourite), fitting[0])
        return self.kind(str(ip), self.port, zone)


def parseWanted(protocol: str, network: str, address: str, services: Services) -> Wanted:
    """
    Read C{network} and C{address}.

    @param protocol: C{tcp} or C{udp}.
    @param network: the protocol, with C{4} or C{6} after it or nothing; C{""}
        is the protocol.
    @raise AddressError: with Go's text.
    """
    kind = TCPAddr if protocol == "tcp" else UDPAddr
    network = network or protocol
    if network not in {protocol, protocol + "4", protocol + "6"}:
        raise AddressError(f"unknown network {network}")
    if not address:
        return Wanted(kind, "", 0)
    host, port = splitGo(address)
    family = int(network[3:] or 0)
    return Wanted(
        kind,
        host,
        parsePort(protocol, port, services),
        family,
        family == 0 and "[" in address,
    )
