"""
A status site on a port of its own, and a client that sends exactly what it is told.
"""

from __future__ import annotations

from contextlib import asynccontextmanager

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from connpool.addresses import parseListen
from connpool.observe import makeSite
from connpool.services.listening import ListeningService
from tests.helpers.protocols import Collecting
from tests.helpers.waiting import bounded


class Answer:
    """
    A response, read to the end of its connection.
    """

    def __init__(self, raw):
        head, _, self.body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.code = int(first.split()[1])
        self.headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            self.headers[name.lower()] = value


class Web:
    def __init__(self, port):
        self.port = port

    async def connect(self):
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        return await bounded(connectProtocol(endpoint, Collecting()))

    async def raw(self, request):
        client = await self.connect()
        client.transport.write(request)
        await bounded(client.lost)
        return client.received

    async def get(self, path="/", *headers, method="GET", host="localhost"):
        lines = [f"{method} {path} HTTP/1.1", "Connection: close", *headers]
        if host is not None:
            lines.append(f"Host: {host}")
        return Answer(await self.raw("\r\n".join([*lines, "", ""]).encode()))


@asynccontextmanager
async def serving(root, protection=None, history=None):
    """
    C{root} started, and its site.
    """
    root.startService()
    site = makeSite(reactor, [root], protection, history)
    listening = ListeningService(
        reactor, [parseListen("tcp:0:interface=127.0.0.1")], site, drainTimeout=0
    )
    listening.startService()
    try:
        yield Web(listening.getHost().port)
    finally:
        await bounded(listening.stopService())
        if root.running:
            await bounded(root.stopService())
