"""
The responders that there are, and C{NAME[:ARGUMENTS]} to one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs
from twisted.plugin import IPlugin, getPlugins
from zope.interface import implementer

from connpool.addresses import tokenize
from connpool.datagram.echo import Echo
from connpool.datagram.irtt import Auto, Irtt
from connpool.datagram.keys import readKey
from connpool.datagram.stamp import Stamp
from connpool.errors import AddressError
from connpool.interfaces import IDatagramResponder, IDatagramResponderFactory

__all__ = ["BUILTIN", "ResponderFactory", "makeResponder", "responderFactories"]


@implementer(IPlugin, IDatagramResponderFactory)
@attrs.frozen
class ResponderFactory:
    name: str
    description: str
    _make: Callable[[str], IDatagramResponder]

    def make(self, arguments: str) -> IDatagramResponder:
        return self._make(arguments)


def _options(text: str, known: Mapping[str, str]) -> dict[str, str]:
    """
    @param text: C{key=value} parts with colons between.
    @param known: each key and the form of its value, for the message.
    """
    positional, options = tokenize(text) if text else ([], {})
    wrong = [*positional, *(set(options) - set(known))]
    if wrong:
        form = ":".join(f"{key}={value}" for key, value in known.items())
        takes = f"takes {form}" if known else "takes no arguments"
        raise AddressError(f"{takes}, not {wrong[0]!r}")
    return options


def _key(options: Mapping[str, str]) -> bytes | None:
    """
    The secret in C{key-file=}.
    """
    path = options.get("key-file")
    return None if path is None else readKey(path)


def _echo(arguments: str) -> IDatagramResponder:
    _options(arguments, {})
    return Echo()


def _auto(arguments: str) -> IDatagramResponder:
    _options(arguments, {})
    return Auto()


def _irtt(arguments: str) -> IDatagramResponder:
    return Irtt(_key(_options(arguments, {"key-file": "PATH"})))


def _stamp(arguments: str) -> IDatagramResponder:
    options = _options(arguments, {"key-file": "PATH", "stateful": "yes"})
    if options.get("stateful", "no") not in {"yes", "no"}:
        raise AddressError("stateful is yes or no")
    return Stamp(_key(options), stateful=options.get("stateful") == "yes")


BUILTIN = (
    ResponderFactory("auto", "irtt for irtt clients, echo for everything else", _auto),
    ResponderFactory("echo", "RFC 862: every datagram comes back as it was", _echo),
    ResponderFactory("irtt", "irtt only; irtt:key-file=PATH for --hmac", _irtt),
    ResponderFactory(
        "stamp", "RFC 8762 reflector; stamp:stateful=yes, stamp:key-file=PATH", _stamp
    ),
)


def responderFactories() -> Iterator[IDatagramResponderFactory]:
    """
    @return: ours, then those of installed plugins.
    """
    yield from BUILTIN
    yield from getPlugins(IDatagramResponderFactory)


def makeResponder(text: str) -> IDatagramResponder:
    """
    @param text: C{NAME[:ARGUMENTS]}, as after C{--protocol}.
    @raise AddressError: no such responder, or its arguments are wrong.
    """
    name, _, arguments = text.partition(":")
    names = []
    for factory in responderFactories():
        if factory.name == name:
            try:
                return factory.make(arguments)
            except ValueError as e:
                raise AddressError(f"{name}: {e}") from None
        names.append(factory.name)
    raise AddressError(f"{name!r} is no datagram protocol; there are {', '.join(names)}")
