"""
Stores and listeners of third parties, chosen as strcred chooses checkers:
C{NAME[:ARGUMENTS]}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.plugin import getPlugins

from connpool.interfaces import (
    IFileStore,
    IFileStoreFactory,
    ITransferListener,
    ITransferListenerFactory,
)

__all__ = ["makeListener", "makeStore"]


def makeListener(text: str) -> ITransferListener:
    """
    Make the listener that C{--listener} names.

    @raise ValueError: no such plugin, or its arguments are wrong; one line.
    """
    listener: ITransferListener = _make(ITransferListenerFactory, "listener", text)
    return listener


def makeStore(text: str) -> Callable[[Any], IFileStore]:
    """
    Find the store that C{--store} names.

    @return: a function of the reactor that opens the store.
    @raise ValueError: no such plugin, or its arguments are wrong; one line.
    """
    opens: Callable[[Any], IFileStore] = _make(IFileStoreFactory, "store", text)
    return opens


def _make(interface: Any, kind: str, text: str) -> Any:
    name, _, arguments = text.partition(":")
    factories = {factory.name: factory for factory in getPlugins(interface)}
    if name not in factories:
        known = ", ".join(sorted(factories)) or "none is installed; see docs/embed.rst"
        raise ValueError(f"no {kind} is called {name!r}; there are: {known}")
    try:
        return factories[name].make(arguments)
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from None
