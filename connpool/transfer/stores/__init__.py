"""
The places of received files: one interface, L{connpool.interfaces.IFileStore}.
"""

from connpool.transfer.stores.local import LocalStore
from connpool.transfer.stores.memory import MemoryStore

__all__ = ["LocalStore", "MemoryStore"]
