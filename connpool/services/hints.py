"""
Commands that a service prints: they work when they are pasted on the machine it runs on.

Things that only the operator knows (a password, a client's certificate, the address of a
proxy) stand in capitals.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from shlex import quote
from typing import Any

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import quoteStringArgument

from connpool.addresses import Listen, joinHostPort
from connpool.addresses.tls import certificateNames, readCertificates
from connpool.errors import AddressError
from connpool.services.access import Access

__all__ = ["commandLine", "curlHint", "localHost", "localPlace", "sendHint", "sendHintElsewhere"]

_PLAIN = re.compile(r"[\w@%+=:,./\[\]-]+", re.ASCII)
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with


def commandLine(words: Sequence[str]) -> str:
    """
    @return: C{words} as a shell takes them.  Brackets stand as they are: no file has a name
        that they could mean, and an address in quotes is harder to read.
    """
    return " ".join(word if _PLAIN.fullmatch(word) else quote(word) for word in words)


def localHost(host: str, access: Access) -> str:
    """
    @param host: where something listens; all addresses, perhaps.
    @param access: whom it lets in.
    @return: the address at which this machine reaches it; of all addresses the loopback, or
        one that C{access} lets in.
    """
    loopback = _LOOPBACK.get(host)
    if loopback is None:
        return host
    candidates = chain([loopback], _ownAddresses(":" in host))
    return next((each for each in candidates if _permits(access, each)), loopback)


def localPlace(address: IPv4Address | IPv6Address, access: Access) -> str:
    """
    @return: C{HOST:PORT} of L{localHost}.
    """
    return joinHostPort(localHost(address.host, access), address.port)


def _permits(access: Access, host: str) -> bool:
    # a connection to an address of our own comes from it
    return access.permits(IPv4Address("TCP", host, 0))


def _ownAddresses(v6: bool) -> Iterator[str]:
    import socket

    import psutil

    family = socket.AF_INET6 if v6 else socket.AF_INET
    try:
        interfaces = psutil.net_if_addrs()
    except OSError:
        return  # a sandbox may forbid to ask
    for found in interfaces.values():
        for each in found:
            # one with a zone is reached from its link only
            if each.family == family and "%" not in each.address:
                yield each.address


@attrs.frozen
class _Shown:
    """
    The certificate that a listener shows.

    @ivar path: of the file that a client may trust; empty if the system's authorities do.
    @ivar names: what it is for.
    """

    path: str
    names: list[str]

    def host(self, host: str) -> str:
        """
        @return: how a client that reaches C{host} must call it.
        """
        if host in self.names:
            return host
        if "localhost" in self.names and host in _LOOPBACK.values():
            return "localhost"
        return next((name for name in self.names if "*" not in name), host)


def _shown(listen: Listen) -> _Shown | None:
    """
    @return: L{None} without TLS.
    """
    if not listen.encrypted:
        return None
    words = listen.keywords
    if "secured" in listen.wrappers:
        path = Path(words["certificate"])
    elif listen.kind == "ssl":
        # ssl:PORT:privateKey:certKey
        named = dict(zip(("port", "privateKey", "certKey"), listen.arguments, strict=False))
        named.update(words)
        path = Path(named.get("certKey") or named.get("privateKey") or "server.pem")
    else:
        files = sorted(Path(listen.arguments[0] if listen.arguments else ".").glob("*.pem"))
        path = files[0] if files else Path("CERTIFICATE.pem")
    try:
        certificates = readCertificates(path, "certificate")
    except AddressError:
        return _Shown("CERTIFICATE.pem", [])
    trusted = "" if _publiclyTrusted(certificates) else os.path.abspath(path)
    return _Shown(trusted, certificateNames(certificates[0]))


def _publiclyTrusted(certificates: list[Any]) -> bool:
    from OpenSSL import crypto

    store, paths = crypto.X509Store(), ssl.get_default_verify_paths()
    try:
        store.load_locations(paths.cafile, paths.capath)
        leaf, *others = map(crypto.X509.from_cryptography, certificates)
        crypto.X509StoreContext(store, leaf, others).verify_certificate()
    except (crypto.Error, crypto.X509StoreContextError, TypeError):
        return False
    return True


def sendHint(listen: Listen, address: Any, access: Access, *, credentials: bool) -> str:
    """
    @param listen: what is listened on.
    @param address: where that is, from C{getHost()}.
    @param access: whom it lets in.
    @param credentials: whether a password is asked for.
    @return: the command that sends a file there.
    """
    shown = _shown(listen)
    to, trust = _destination(listen, address, access, shown)
    words = ["connpool", "send", "--to", to, *trust]
    if credentials and not listen.certified:
        words += ["--credentials", "CREDENTIALS"]
    return commandLine([*words, "FILE"])


def sendHintElsewhere(listen: Listen, address: Any, *, credentials: bool) -> str | None:
    """
    @return: the command for other machines, if the certificate has a name for this one.
    """
    shown = _shown(listen)
    if shown is None or "proxied" in listen.wrappers or not hasattr(address, "port"):
        return None
    name = shown.host("")
    if listen.local or not name or name == "localhost":
        return None
    own = ":certificate=CLIENT.pem" if listen.certified else ""
    words = ["connpool", "send", "--to", f"tls:{joinHostPort(name, address.port)}{own}"]
    words += ["--ca", "CA.pem"] if shown.path else []
    if credentials and not listen.certified:
        words += ["--credentials", "CREDENTIALS"]
    return commandLine([*words, "FILE"])


def curlHint(listen: Listen, address: Any, access: Access, *, credentials: bool) -> str | None:
    """
    @return: the command that sends a file there by HTTP; L{None} where that takes more than
        a line.
    """
    if listen.certified or "proxied" in listen.wrappers:
        return None
    shown = _shown(listen)
    words = ["curl"] + (["-u", "USER"] if credentials else [])
    name = getattr(address, "name", None)
    if name:
        words += ["--unix-socket", os.path.abspath(os.fsdecode(name))]
        place = "localhost"
    elif isinstance(address, IPv4Address | IPv6Address):
        host = localHost(address.host, access)
        if shown is not None and shown.host(host) not in {host, "localhost"}:
            return None
        place = joinHostPort(host if shown is None else shown.host(host), address.port)
    else:
        return None
    if shown is not None and shown.path:
        words += ["--cacert", shown.path]
    scheme = "http" if shown is None else "https"
    return commandLine([*words, "-T", "FILE", f"{scheme}://{place}/"])


def _destination(
    listen: Listen, address: Any, access: Access, shown: _Shown | None
) -> tuple[str, list[str]]:
    """
    @return: what C{--to} says, and the options of trust.
    """
    plain, host = _plain(address, access)
    header = _header(listen, address, access)
    if header is None:
        # only the proxy gets in
        return ("PROXY:PORT", []) if shown is None else ("tls:PROXY:PORT", ["--ca", "CA.pem"])
    if shown is None:
        if header:
            return f"{header}{plain}", []
        return (plain.removeprefix("tcp:") if plain.startswith("tcp:") else plain), []
    own = ":certificate=CLIENT.pem" if listen.certified else ""
    name = shown.host(host)
    below = plain
    if header and listen.wrappers.index("secured") < listen.wrappers.index("proxied"):
        # the header comes before TLS
        below = header + plain
    if below.startswith("tcp:") and (name == host or (name, host) == ("localhost", "127.0.0.1")):
        tls = f"tls:{joinHostPort(name, address.port)}{own}"
    else:
        tls = f"tls:{quoteStringArgument(name)}:endpoint={_escaped(below)}{own}"
    if header and below == plain:
        roots = f":trustRoots={_escaped(shown.path)}" if shown.path else ""
        return f"{header}{tls}{roots}", []
    return tls, ["--ca", shown.path] if shown.path else []


def _escaped(text: str) -> str:
    return str(quoteStringArgument(text)).replace("=", r"\=")


def _plain(address: Any, access: Access) -> tuple[str, str]:
    """
    @return: how a client without TLS reaches it, and the host in that.
    """
    if isinstance(address, IPv4Address | IPv6Address):
        host = localHost(address.host, access)
        return f"tcp:{joinHostPort(host, address.port)}", host
    name = getattr(address, "name", None)
    if not name:
        return "unix:SOCKET", "localhost"
    return f"unix:{_escaped(os.path.abspath(os.fsdecode(name)))}", "localhost"


def _header(listen: Listen, address: Any, access: Access) -> str | None:
    """
    @return: the prefix by which this machine passes for a proxy; empty if none is asked
        for; L{None} if only others are believed.
    """
    if "proxied" not in listen.wrappers:
        return ""
    from connpool.proxyprotocol.strings import parseTrust  # not for those that trust no proxy

    trusted, _, _ = parseTrust("proxied:", dict(listen.keywords))
    if not isinstance(address, IPv4Address | IPv6Address):
        # the header of such a client names no address
        return "proxyheader:" if trusted.unix and not (access.allow or access.deny) else None
    host = _LOOPBACK.get(address.host, address.host)
    return "proxyheader:" if host in trusted.networks else None
