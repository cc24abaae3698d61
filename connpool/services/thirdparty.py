"""
Stores and listeners of third parties, chosen as strcred chooses checkers:
C{NAME[:ARGUMENTS]}.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

import attrs
from twisted.plugin import getPlugins

from connpool.interfaces import (
    IFileStore,
    IFileStoreFactory,
    ITransferListener,
    ITransferListenerFactory,
)
from connpool.transfer.records import StoreSettings

__all__ = ["ChosenStore", "makeListener", "makeStore"]


def makeListener(text: str) -> ITransferListener:
    """
    Make the listener that C{--listener} names.

    @raise ValueError: no such plugin, or its arguments are wrong; one line.
    """
    listener: ITransferListener = _make(ITransferListenerFactory, "listener", text)
    return listener


@attrs.frozen
class ChosenStore:
    """
    The store that C{--store} names.

    @ivar name: of its plugin.
    @ivar opens: opens it.
    @ivar takes: as L{IFileStoreFactory} has it.
    """

    name: str
    opens: Callable[[Any, StoreSettings], IFileStore]
    takes: AbstractSet[str] = frozenset()


def makeStore(text: str) -> ChosenStore:
    """
    Find the store that C{--store} names.

    @raise ValueError: no such plugin, or its arguments are wrong; one line.
    """
    factory = _find(IFileStoreFactory, "store", text)
    return ChosenStore(factory.name, _made(factory, text), frozenset(factory.takes))


def _make(interface: Any, kind: str, text: str) -> Any:
    return _made(_find(interface, kind, text), text)


def _find(interface: Any, kind: str, text: str) -> Any:
    name = text.partition(":")[0]
    factories = {factory.name: factory for factory in getPlugins(interface)}
    if name not in factories:
        known = ", ".join(sorted(factories)) or "none is installed; see docs/embed.rst"
        raise ValueError(f"no {kind} is called {name!r}; there are: {known}")
    return factories[name]


def _made(factory: Any, text: str) -> Any:
    name, _, arguments = text.partition(":")
    try:
        return factory.make(arguments)
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from None
