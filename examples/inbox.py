"""
A program of one's own that receives files and does something with each.

Run it with: python examples/inbox.py; send it something with: connpool send FILE
"""

import os
import sys

from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner, textFileLogObserver
from zope.interface import implementer

from connpool.errors import StartFailed
from connpool.interfaces import ITransferListener
from connpool.services import FileReceiver


@implementer(ITransferListener)
class Announce:
    """
    Told about every file; called in the reactor, so it must not block.
    """

    def __init__(self, directory):
        self.directory = directory

    def offered(self, offer, peer):
        pass

    def refused(self, name, peer, why):
        print(f"refused {name} from {peer}: {why}")

    def started(self, offer, peer):
        print(f"{peer} sends {offer.name}")

    def progressed(self, offer, peer, done):
        print(f"{done} bytes of {offer.name}")

    def published(self, receipt):
        path = os.path.join(self.directory, receipt.name)
        print(f"got {receipt.size} bytes in {path}", flush=True)

    def failed(self, offer, peer, why):
        print(f"{offer.name} did not arrive: {why}")


def main(reactor):
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    service = FileReceiver(
        reactor,
        "received",
        createDirectory=True,
        listen=["tcp:8640:interface=127.0.0.1"],
        listeners=[Announce("received")],
    )
    try:
        service.privilegedStartService()
        service.startService()
    except StartFailed as e:
        sys.exit(str(e))
    # Ctrl-C: files under way end first
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    return Deferred()


if __name__ == "__main__":
    task.react(main)
