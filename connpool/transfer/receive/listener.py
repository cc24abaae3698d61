"""
A listener that hears of everything and does nothing.
"""

from __future__ import annotations

from zope.interface import implementer

from connpool.interfaces import ITransferListener
from connpool.transfer.records import Offer, Receipt

__all__ = ["TransferListener"]


@implementer(ITransferListener)
class TransferListener:
    """
    A base of listeners: each has the methods of the events that concern it, and of no others.
    """

    def offered(self, offer: Offer, peer: str) -> None:
        """
        Do nothing.
        """

    def refused(self, name: str, peer: str, why: Exception) -> None:
        """
        Do nothing.
        """

    def started(self, offer: Offer, peer: str) -> None:
        """
        Do nothing.
        """

    def progressed(self, offer: Offer, peer: str, done: int) -> None:
        """
        Do nothing.
        """

    def published(self, receipt: Receipt) -> None:
        """
        Do nothing.
        """

    def failed(self, offer: Offer, peer: str, why: BaseException) -> None:
        """
        Do nothing.
        """
