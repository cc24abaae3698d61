"""
Endpoint descriptions as operators write them after C{--listen}.

The grammar is Twisted's (C{prefix:arg:key=value}, a backslash escapes); what
Twisted has no descriptions for, datagrams, is C{udp:}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from connpool.addresses.hostport import parsePortNumber
from connpool.addresses.networks import Networks
from connpool.errors import AddressError

__all__ = ["Listen", "complaint", "parseListen", "tokenize"]

#: Server endpoint strings that wrap another one: C{secured:tcp:443:…}.
WRAPPERS = frozenset({"proxied", "secured"})

_UNKNOWN_KEYWORD = re.compile(r"unexpected keyword argument '(\w+)'")
_TCP_EXAMPLE = r"write for example tcp:8640:interface=127.0.0.1 or tcp:8640:interface=\:\:1"
_LOOPBACK = Networks.parse(["127.0.0.0/8", "::1"])

#: Kinds whose first argument is a TCP port.
_TCP_PORT = frozenset({"tcp", "tcp6", "ssl"})

#: Families of sockets that systemd passes.
_DOMAINS = frozenset({"INET", "INET6", "UNIX"})

#: Kinds that open a port themselves, where C{interface=} says.
_OWN_PORT = frozenset({"tcp", "tcp6", "ssl", "tls", "udp"})


def tokenize(description: str) -> tuple[list[str], dict[str, str]]:
    r"""
    Split an endpoint description at its unescaped colons and equal signs.

    @return: the positional parts, the prefix first, and the C{key=value} ones.
    @raise AddressError: for a key given twice or a backslash at the end.
    """
    positional: list[str] = []
    keywords: dict[str, str] = {}
    part: list[str] = []
    key: str | None = None

    def end() -> None:
        nonlocal key
        text = "".join(part)
        part.clear()
        if key is None:
            positional.append(text)
        elif key in keywords:
            raise AddressError(f"{description!r} has {key}= twice; give it once")
        else:
            keywords[key] = text
        key = None

    characters = iter(description)
    for character in characters:
        if character == "\\":
            try:
                part.append(next(characters))
            except StopIteration:
                raise AddressError(
                    f"{description!r} ends in a backslash; write \\\\ for one"
                ) from None
        elif character == ":":
            end()
        elif character == "=" and key is None:
            key = "".join(part)
            part.clear()
        else:
            part.append(character)
    end()
    return positional, keywords


@attrs.frozen
class Listen:
    """
    A C{--listen} description, as read before anything is opened.

    @ivar description: as written, but for names of services, which are numbers.
    @ivar wrappers: the wrapping prefixes, outermost first (C{proxied},
        C{secured}).
    @ivar kind: the prefix of what is opened in the end: C{tcp}, C{unix}, C{udp}, …
    @ivar arguments: positional parts after C{kind}.
    @ivar keywords: all C{key=value} parts.
    """

    description: str
    wrappers: tuple[str, ...]
    kind: str
    arguments: tuple[str, ...]
    keywords: Mapping[str, str]

    @property
    def datagram(self) -> bool:
        """
        True for C{udp:}.
        """
        return self.kind == "udp"

    @property
    def encrypted(self) -> bool:
        """
        True if clients speak TLS.
        """
        return "secured" in self.wrappers or self.kind in {"ssl", "tls"}

    @property
    def certified(self) -> bool:
        """
        True if clients must show a certificate that is trusted.
        """
        return "secured" in self.wrappers and "trustRoots" in self.keywords

    @property
    def local(self) -> bool:
        """
        True if only this machine can reach it: loopback and unix sockets.

        Clients behind a proxy header, and those of another socket of systemd, can be
        anywhere.
        """
        if "proxied" in self.wrappers:
            return False
        if self.kind == "unix" or (self.kind == "systemd" and self.keywords["domain"] == "UNIX"):
            return True
        return self.kind in _OWN_PORT and self.keywords.get("interface", "") in _LOOPBACK

    @property
    def makeLocal(self) -> str:
        """
        The end of a sentence of remedies: a change that makes it local; empty if there is none.
        """
        own = self.kind in _OWN_PORT and "proxied" not in self.wrappers
        return ", or add interface=127.0.0.1" * own


def parseListen(description: str) -> Listen:
    r"""
    Read a C{--listen} description.

    @param description: a server endpoint string, or
        C{udp:PORT[:interface=ADDRESS][:reusePort=yes]}, or
        C{udp:systemd:name=NAME}, or one of these after C{proxied:} with
        C{trusted=LIST[:policy=…]}.
    @raise AddressError: for a text that cannot be one of these.
    """
    positional, keywords = tokenize(description)
    wrappers = []
    while positional and positional[0] in WRAPPERS:
        wrappers.append(positional.pop(0))
    if wrappers and any(":" in each for each in (*positional[:1], *keywords)):
        raise AddressError(
            f"{description!r}: what {wrappers[-1]}: wraps has no backslashes before its colons; "
            f"write for example {wrappers[-1]}:tcp:8640:interface=127.0.0.1:…"
        )
    if not positional or not positional[0]:
        raise AddressError(
            f"{description!r} is not an endpoint; write for example tcp:8640:interface=127.0.0.1"
        )
    kind, *arguments = positional
    if kind in _TCP_PORT and arguments:
        # Twisted takes numbers only
        description, arguments[0] = _withNumber(description, kind, arguments[0])
    if not arguments and not keywords:
        raise AddressError(f"{description!r} is not an endpoint; {_TCP_EXAMPLE}")
    listen = Listen(description, tuple(wrappers), kind, tuple(arguments), keywords)
    if kind == "systemd":
        return _inherited(listen)
    return _datagram(listen) if listen.datagram else listen


def complaint(error: Exception) -> str:
    r"""
    Say what an endpoint's parser did not like, in one line.  Those of Twisted speak of the
    arguments of Python functions.
    """
    why = str(error).partition("\n")[0] or type(error).__name__
    unknown = _UNKNOWN_KEYWORD.search(why)
    if unknown is not None:
        return f"it takes no {unknown[1]}="
    if isinstance(error, TypeError) or why.startswith("invalid literal"):
        return r"a part is missing, wrong or too much (a colon in an address is written \:)"
    return why


def _withNumber(description: str, kind: str, port: str) -> tuple[str, str]:
    """
    @return: the description and its port, with the number of a service in place of
        its name.
    @raise AddressError: there is no such port.
    """
    try:
        number = str(parsePortNumber(port, least=0))
    except AddressError as e:
        raise AddressError(f"{description!r}: {e}; {_TCP_EXAMPLE}") from None
    if port.isdigit():
        return description, port
    return description.replace(f"{kind}:{port}", f"{kind}:{number}", 1), number


def _inherited(listen: Listen) -> Listen:
    """
    @return: C{listen}, with all parts as keywords.
    @raise AddressError: for a C{systemd:} description with a mistake in it.
    """
    text = listen.description
    keywords = dict(zip(("domain", "index"), listen.arguments, strict=False)) | dict(
        listen.keywords
    )
    example = "write for example systemd:domain=INET6:name=NAME"
    if keywords.get("domain") not in _DOMAINS:
        raise AddressError(f"{text!r}: domain= is INET, INET6 or UNIX; {example}")
    if ("name" in keywords) == ("index" in keywords):
        raise AddressError(f"{text!r}: one of name= and index= says which socket; {example}")
    listen = attrs.evolve(listen, keywords=keywords)
    _checkIndex(listen)
    return listen


def _checkIndex(listen: Listen) -> None:
    if not re.fullmatch("[0-9]{1,4}", listen.keywords.get("index", "0")):
        raise AddressError(f"{listen.description!r}: index= is a number, 0 for the first socket")


def _datagram(listen: Listen) -> Listen:
    """
    @return: C{listen}, with the port as a number.
    @raise AddressError: for a C{udp:} description with a mistake in it.
    """
    text = listen.description
    example = r"write for example udp:8641:interface=127.0.0.1 or udp:8641:interface=\:\:1"
    systemd = listen.arguments == ("systemd",)
    known = {"name", "index"} if systemd else {"interface", "reusePort"}
    if "proxied" in listen.wrappers:
        known |= {"trusted", "policy"}
    unknown = set(listen.keywords) - known
    if unknown:
        raise AddressError(f"{text!r} has unknown {', '.join(sorted(unknown))}; {example}")
    if len(listen.arguments) != 1:
        # udp:8641:\:\:1 without the escapes would silently listen everywhere
        raise AddressError(f"{text!r}: one port and key=value parts only; {example}")
    if systemd:
        _checkIndex(listen)
        return listen
    (port,) = listen.arguments
    try:
        number = parsePortNumber(port, "udp", least=0)
    except AddressError as e:
        raise AddressError(f"{text!r}: {e}; {example}") from None
    if listen.keywords.get("reusePort", "no") not in {"yes", "no"}:
        raise AddressError(f"{text!r}: reusePort is yes or no")
    return attrs.evolve(listen, arguments=(str(number),))
