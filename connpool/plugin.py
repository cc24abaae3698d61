"""
The parts of C{twisted/plugins/connpool_plugins.py}.

Twisted imports that file on every start of every C{twistd} in the
environment, so nothing here imports the reactor or a room of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from twisted.application.service import ServiceMaker
from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from twisted.python.reflect import namedAny
from zope.interface import implementer
from zope.interface.declarations import Declaration

__all__ = ["DaemonMaker", "LazyClient", "LazyServer", "LazyStore"]


class _Lazy:
    """
    An endpoint prefix and, as C{"module:function"}, what parses it.

    @ivar prefix: the word before the first colon of the endpoint string.
    """

    def __init__(self, prefix: str, target: str) -> None:
        self.prefix = prefix
        self._target = target

    def _parse(self, *args: Any, **kwargs: Any) -> Any:
        return namedAny(self._target.replace(":", "."))(*args, **kwargs)


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class LazyClient(_Lazy):
    """
    A client endpoint prefix whose parser is imported when first used.
    """

    def parseStreamClient(self, reactor: Any, *args: Any, **kwargs: Any) -> Any:
        return self._parse(reactor, *args, **kwargs)


@implementer(IPlugin, IStreamServerEndpointStringParser)
class LazyServer(_Lazy):
    """
    A server endpoint prefix whose parser is imported when first used.
    """

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> Any:
        return self._parse(reactor, *args, **kwargs)


class LazyStore:
    """
    An L{IFileStoreFactory<connpool.interfaces.IFileStoreFactory>} whose module is imported
    when the store is chosen.
    """

    def __init__(self, name: str, target: str, description: str, takes: Iterable[str]) -> None:
        self.name = name
        self.description = description
        self.takes = frozenset(takes)
        self._target = target

    @property
    def __providedBy__(self) -> Declaration:
        # asked by Twisted when it writes its cache, and not at each start of a twistd
        from connpool.interfaces import IFileStoreFactory

        return Declaration(IPlugin, IFileStoreFactory)

    def make(self, arguments: str) -> Any:
        return namedAny(self._target.replace(":", "."))(arguments)


class DaemonMaker(ServiceMaker):
    """
    A C{twistd} plugin of ours: what it makes under C{twistd} and C{twist} is
    the root of the process, see L{connpool.services.daemon}.
    """

    @property
    def makeService(self) -> Callable[..., Any]:
        return partial(namedAny("connpool.services.daemon.asDaemon"), super().makeService)
