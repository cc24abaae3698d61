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

__all__ = [
    "DURABILITIES",
    "IF_EXISTS",
    "FileStat",
    "LiveTransfer",
    "Offer",
    "PartialInfo",
    "Receipt",
    "RelativeName",
    "StoreCaps",
    "displayName",
]
