"""
Receiving and sending files.
"""

from connpool.transfer.names import RelativeName, displayName
from connpool.transfer.records import (
    DURABILITIES,
    IF_EXISTS,
    FileStat,
    LiveTransfer,
    Offer,
    PartialInfo,
    Receipt,
    StoreCaps,
)
from connpool.transfer.stores import LocalStore, MemoryStore

__all__ = [
    "DURABILITIES",
    "IF_EXISTS",
    "FileStat",
    "LiveTransfer",
    "LocalStore",
    "MemoryStore",
    "Offer",
    "PartialInfo",
    "Receipt",
    "RelativeName",
    "StoreCaps",
    "displayName",
]
