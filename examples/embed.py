"""
A file receiver, a sender for what is put into a folder, a UDP echo, and a page that
shows all of them, inside an application of one's own.

Run it with: twistd -n --pidfile= -y examples/embed.py
"""

from twisted.application import service
from twisted.internet import reactor

from connpool.services import Access, FileReceiver, FileSender, ObservedService, UDPEcho
from connpool.transfer import Policy

application = service.Application("mine")
parts = service.MultiService()
receiver = FileReceiver(
    reactor,
    "inbox",
    listen=["tcp:8640:interface=127.0.0.1"],
    access=Access(allow=["127.0.0.0/8"], maxConnections=100),
    policy=Policy(maxFileSize=10 << 30, ifExists="refuse"),
)
receiver.setServiceParent(parts)
FileSender(reactor, "outbox", "127.0.0.1:8640", settle=1.0).setServiceParent(parts)
UDPEcho(reactor, listen=["udp:8641:interface=127.0.0.1"]).setServiceParent(parts)
ObservedService(reactor, parts, "tcp:8690:interface=127.0.0.1").setServiceParent(application)
