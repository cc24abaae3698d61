"""
Metrics, health and the status page of whatever runs under a service.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from connpool.observe.fields import Field, describeFields
from connpool.observe.protection import Protection
from connpool.observe.sources import Reading, findTransfers, findTroubles, readSources

if TYPE_CHECKING:
    from connpool.observe.metrics import StatsCollector, makeRegistry
    from connpool.observe.site import makeSite

__all__ = [
    "Field",
    "Protection",
    "Reading",
    "StatsCollector",
    "describeFields",
    "findTransfers",
    "findTroubles",
    "makeRegistry",
    "makeSite",
    "readSources",
]

#: Imported when first asked for: a command that reads TCP states should not
#: wait for a web server.
_LATER = {
    "StatsCollector": "connpool.observe.metrics",
    "makeRegistry": "connpool.observe.metrics",
    "makeSite": "connpool.observe.site",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
