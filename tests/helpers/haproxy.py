"""
HAProxy as a peer: run on sockets of ours, with clients that can be told apart.
"""

import socket
import subprocess
from contextlib import ExitStack, contextmanager

from twisted.internet import reactor
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
    connectProtocol,
)
from twisted.internet.protocol import Factory, Protocol

from tests.helpers.waiting import bounded, until

#: Where clients come from: HAProxy itself connects from 127.0.0.1.
CLIENT = "127.0.0.2"


class Frontend:
    """
    Where a running HAProxy takes connections.
    """

    def __init__(self, port, port6, path, process):
        self.port = port
        self.port6 = port6
        self.path = path
        self._process = process

    def endpoint(self, kind, client=CLIENT):
        if kind == "tcp4":
            return TCP4ClientEndpoint(
                reactor, "127.0.0.1", self.port, bindAddress=(client, 0), timeout=10
            )
        if kind == "tcp6":
            return TCP6ClientEndpoint(reactor, "::1", self.port6, timeout=10)
        return UNIXClientEndpoint(reactor, str(self.path), timeout=10)


@contextmanager
def haproxy(directory, server, accept=""):
    """
    Run HAProxy on sockets that listen already.

    @param server: what follows C{server s} in its configuration.
    @param accept: what follows each C{bind}.
    """
    with ExitStack() as stack:
        four = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        six = stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        path = directory / "front"
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(str(path))
        local.listen()
        listening = [four, six, local]
        configuration = directory / "haproxy.cfg"
        binds = "\n".join(f"  bind fd@{each.fileno()} {accept}" for each in listening)
        configuration.write_text(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n"
            f"  timeout server 30s\nlisten front\n{binds}\n  server s {server}\n"
        )
        process = subprocess.Popen(
            ["haproxy", "-db", "-f", str(configuration)],
            pass_fds=[each.fileno() for each in listening],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield Frontend(four.getsockname()[1], six.getsockname()[1], path, process)
        finally:
            process.kill()
            process.communicate(timeout=10)


class Banner(Protocol):
    """
    Speaks first, then echoes.
    """

    def connectionMade(self):
        self.transport.write(b"hello ")

    def dataReceived(self, data):
        self.transport.write(data)


class Banners(Factory):
    protocol = Banner

    def __init__(self):
        self.peers = []
        self.transports = []

    def buildProtocol(self, addr):
        self.peers.append(addr.host)
        protocol = super().buildProtocol(addr)
        made = protocol.connectionMade

        def connectionMade():
            assert protocol.transport.getPeer() == addr
            self.transports.append(protocol.transport)
            made()

        protocol.connectionMade = connectionMade
        return protocol


class Reader(Protocol):
    data = b""
    lost = None

    def connectionMade(self):
        self.transport.write(b"x")

    def dataReceived(self, data):
        self.data += data

    def connectionLost(self, reason=None):
        self.lost = reason


async def speak(endpoint):
    """
    @return: a connection that got its banner and echo.
    """
    reader = await bounded(connectProtocol(endpoint, Reader()))
    await until(lambda: reader.data == b"hello x" or reader.lost)
    return reader


async def hangUp(reader):
    reader.transport.loseConnection()
    await until(lambda: reader.lost)


def address(port):
    """
    A listening port as HAProxy writes it.
    """
    host = port.getHost()
    if hasattr(host, "port"):
        return f"[{host.host}]:{host.port}" if ":" in host.host else f"{host.host}:{host.port}"
    return f"unix@{host.name.decode()}"
