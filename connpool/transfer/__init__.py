"""
Receiving and sending files.

A name is imported when it is first asked for: a command that sends need not
wait for all that receives, an eighth of the time it takes to start.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from connpool.transfer.names import RelativeName, displayName
    from connpool.transfer.receive.policy import Policy
    from connpool.transfer.receive.session import NativeReceiver
    from connpool.transfer.records import (
        DURABILITIES,
        IF_EXISTS,
        FileStat,
        LiveTransfer,
        Offer,
        PartialInfo,
        Receipt,
    )
    from connpool.transfer.send.client import FileOutcome, SendReport, sendFiles
    from connpool.transfer.send.connections import SessionFactory, hello
    from connpool.transfer.send.credentials import Credentials
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
    "Policy",
    "Receipt",
    "RelativeName",
    "SendReport",
    "SessionFactory",
    "displayName",
    "hello",
    "sendFiles",
]

_MODULES = (
    "names",
    "records",
    "send.client",
    "send.connections",
    "send.credentials",
    "receive.policy",
    "receive.session",
    "stores",
)


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in _MODULES:
            found = import_module(f"connpool.transfer.{module}")
            if name in found.__all__:
                value: object = getattr(found, name)
                globals()[name] = value
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
