"""
Receiving and sending files.
"""

from connpool.transfer.names import RelativeName, displayName
from connpool.transfer.native.registry import NativeReceiver
from connpool.transfer.native.sender import Credentials, SessionFactory, hello
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
from connpool.transfer.sending import FileOutcome, SendReport, sendFiles
from connpool.transfer.stores import LocalStore, MemoryStore

__all__ = [
    "DURABILITIES",
    "IF_EXISTS",
    "Credentials",
    "FileOutcome",
    "FileStat",
    "LiveTransfer",
    "LocalStore",
    "MemoryStore",
    "NativeReceiver",
    "Offer",
    "PartialInfo",
    "Receipt",
    "RelativeName",
    "SendReport",
    "SessionFactory",
    "StoreCaps",
    "displayName",
    "hello",
    "sendFiles",
]
