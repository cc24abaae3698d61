"""
Which responders there are, and C{NAME[:ARGUMENTS]} to one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
from twisted.plugin import IPlugin, getPlugins
from zope.interface import implementer

from connpool.datagram.echo import Echo
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


def _plain(build: Callable[[], IDatagramResponder]) -> Callable[[str], IDatagramResponder]:
    def make(arguments: str) -> IDatagramResponder:
        if arguments:
            raise AddressError(f"takes no arguments, not {arguments!r}")
        return build()

    return make


BUILTIN = (ResponderFactory("echo", "RFC 862: every datagram comes back as it was", _plain(Echo)),)


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
