"""
Lists of networks, for allow and deny rules.

Only literal networks: a rule that needs a look-up fails open or shut with the
resolver (CVE-2026-70452 of rsync), so names are refused when the list is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

import attrs

from connpool.errors import AddressError

__all__ = ["Networks", "networkOf"]

_EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """
    Treat mapped networks as L{_address} does mapped addresses: a log shows
    C{::ffff:192.0.2.7}, and an operator who copies that into a rule means it.
    """
    first = network.network_address
    if isinstance(first, IPv6Address) and first.ipv4_mapped and network.prefixlen >= 96:
        return IPv4Network((first.ipv4_mapped, network.prefixlen - 96))
    return network


def networkOf(host: str, ipv4: int = 32, ipv6: int = 64) -> str:
    """
    Name the network that stands for C{host} where something is counted or
    limited: one customer has an IPv6 /64 at least, and can call from each of its
    addresses.

    @param ipv4: the length of the prefix for IPv4, mapped addresses included;
        a multiple of 8.
    @param ipv6: the one for IPv6, except for link-local addresses, which are
        all in one network and count for themselves.
    @return: the prefix in hex; C{host} itself if it is no IP address.
    """
    address = _address(host)
    if address is None:
        return host
    length = ipv4 if address.version == 4 else 128 if address.is_link_local else ipv6
    return f"{address.packed[: length // 8].hex()}/{length}"


@attrs.frozen
class Networks:
    """
    A set of CIDR networks.

    An IPv4-mapped IPv6 address (C{::ffff:10.0.0.1}) is its IPv4 address; a
    zone does not take part.  What is not an IP address is in no network.
    """

    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Networks:
        """
        @param texts: CIDR networks, single addresses, or C{any}.
        @raise AddressError: for a text that is none of these, also for one
            with host bits set (C{10.0.0.1/8}), which is a mistake more often
            than a wish.
        """
        networks: list[IPv4Network | IPv6Network] = []
        for text in texts:
            if text == "any":
                networks.extend(_EVERYTHING)
                continue
            try:
                networks.append(_unmapped(ip_network(text)))
            except ValueError as e:
                raise AddressError(
                    f"{text!r} is not a network: {e}; write for example 10.0.0.0/8, fd00::/8 or any"
                ) from None
        return cls(tuple(networks))

    def __contains__(self, host: object) -> bool:
        address = _address(str(host))
        return address is not None and any(address in network for network in self.networks)

    def __bool__(self) -> bool:
        return bool(self.networks)
