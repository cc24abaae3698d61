"""
A listener of one's own: a line of JSON for every file that was received.

The file lies in twisted/plugins/ of a distribution or of any directory on
PYTHONPATH, without an __init__.py in either directory. Then:

    twistd -n --pidfile= filerecv --listener ledger:files.jsonl

Twisted imports it at every start of every twistd, so it imports little.
"""

import json

import attrs
from twisted.plugin import IPlugin
from zope.interface import implementer

from connpool.interfaces import ITransferListener, ITransferListenerFactory


@implementer(ITransferListener)
class Ledger:
    def __init__(self, path):
        self.path = path

    def offered(self, offer, peer):
        pass

    def refused(self, name, peer, why):
        pass

    def started(self, offer, peer):
        pass

    def progressed(self, offer, peer, done):
        pass

    def published(self, receipt):
        # opened late: by now the process runs as the user it shall run as
        with open(self.path, "a", encoding="utf-8") as ledger:
            ledger.write(json.dumps(attrs.asdict(receipt)) + "\n")

    def failed(self, offer, peer, why):
        pass


@implementer(IPlugin, ITransferListenerFactory)
class LedgerFactory:
    name = "ledger"
    description = "Writes the receipt of every file as a line of JSON: ledger:PATH"

    def make(self, arguments):
        if not arguments:
            raise ValueError("which file? write ledger:PATH")
        return Ledger(arguments)


ledger = LedgerFactory()
