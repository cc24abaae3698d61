"""
Metrics, health and the status page of whatever runs under a service.
"""

from typing import TYPE_CHECKING

from connpool.later import importLater
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
    "History": "history",
    "HistoryService": "history",
    "StatsCollector": "metrics",
    "makeRegistry": "metrics",
    "makeSite": "site",
    "State": "tcpstates",
    "StateCounts": "tcpstates",
    "TCPInfo": "tcpstates_read",
    "TCPStates": "tcpstates_read",
    "countStates": "tcpstates",
    "readSockets": "tcpstates_read",
    "tcpInfo": "tcpstates_read",
}

__getattr__ = importLater(__name__, _LATER)
