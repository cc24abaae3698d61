"""
A file receiver and a UDP echo inside an application of one's own.

Run it with: twistd -n --pidfile= -y examples/embed.py
"""

from twisted.application import service

from connpool.services import filerecv, udpecho

application = service.Application("mine")

for plugin, words in (
    (filerecv, ["--directory", "inbox", "--listen", "tcp:8640:interface=127.0.0.1"]),
    (udpecho, ["--listen", "udp:8641:interface=127.0.0.1"]),
):
    options = plugin.Options()
    options.parseOptions(words)
    plugin.makeService(options).setServiceParent(application)
