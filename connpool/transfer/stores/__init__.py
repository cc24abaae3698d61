"""
The places of received files: one interface, L{connpool.interfaces.IFileStore}.
"""

from typing import TYPE_CHECKING

from connpool.transfer.stores.local import LocalStore

if TYPE_CHECKING:
    from connpool.transfer.stores.memory import MemoryStore

__all__ = ["LocalStore", "MemoryStore"]


def __getattr__(name: str) -> object:
    # a service that keeps files on a disk has no use for the other one
    if name == "MemoryStore":
        from connpool.transfer.stores.memory import MemoryStore

        return MemoryStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
