"""
Where received files go: one interface, L{connpool.interfaces.IFileStore}.
"""

from connpool.transfer.stores.local import LocalStore
from connpool.transfer.stores.memory import MemoryStore

__all__ = ["LocalStore", "MemoryStore"]
