"""
Third parties who want to know about every file: C{--listener NAME[:ARGUMENTS]}.
"""

from __future__ import annotations

from twisted.plugin import getPlugins

from connpool.interfaces import ITransferListener, ITransferListenerFactory

__all__ = ["makeListener"]


def makeListener(text: str) -> ITransferListener:
    """
    @param text: the name of an installed plugin, and after a colon what it is
        told.
    @raise ValueError: no such plugin, or its arguments are wrong; one line.
    """
    name, _, arguments = text.partition(":")
    factories = {factory.name: factory for factory in getPlugins(ITransferListenerFactory)}
    if name not in factories:
        known = ", ".join(sorted(factories)) or "none is installed; see docs/embed.rst"
        raise ValueError(f"no listener is called {name!r}; there are: {known}")
    try:
        return factories[name].make(arguments)
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from None
