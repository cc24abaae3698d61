"""
Metrics, health and the status page of whatever runs under a service.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from connpool.observe.fields import Field, describeFields
from connpool.observe.protection import Protection
from connpool.observe.sources import Reading, findTransfers, findTroubles, readSources

if TYPE_CHECKING:
    from connpool.observe.history import History, HistoryService
    from connpool.observe.metrics import StatsCollector, makeRegistry
    from connpool.observe.site import makeSite
    from connpool.observe.tcpstates import State, StateCounts, countStates
    from connpool.observe.tcpstates_read import TCPInfo, TCPStates, readSockets, tcpInfo

__all__ = [
    "Field",
    "History",
    "HistoryService",
    "Protection",
    "Reading",
    "State",
    "StateCounts",
    "StatsCollector",
    "TCPInfo",
    "TCPStates",
    "countStates",
    "describeFields",
    "findTransfers",
    "findTroubles",
    "makeRegistry",
    "makeSite",
    "readSockets",
    "readSources",
    "tcpInfo",
]

#: Imported when first asked for: a command that reads TCP states should not
#: wait for a web server.
_LATER = {
    "History": "connpool.observe.history",
    "HistoryService": "connpool.observe.history",
    "StatsCollector": "connpool.observe.metrics",
    "makeRegistry": "connpool.observe.metrics",
    "makeSite": "connpool.observe.site",
    "State": "connpool.observe.tcpstates",
    "StateCounts": "connpool.observe.tcpstates",
    "TCPInfo": "connpool.observe.tcpstates_read",
    "TCPStates": "connpool.observe.tcpstates_read",
    "countStates": "connpool.observe.tcpstates",
    "readSockets": "connpool.observe.tcpstates_read",
    "tcpInfo": "connpool.observe.tcpstates_read",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
