"""
A relay that lets only so much through: what a test needs to stop a sender at
a known place, without relying on time.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Valve:
    """
    Relays TCP connections from C{port} to C{target}.

    @ivar port: connect here, on loopback.
    @ivar target: the port behind it; L{None} while there is none, then
        connections are closed.
    @ivar connections: that reached the target.
    @ivar passed: bytes that went towards the target.
    """

    def __init__(self) -> None:
        self.target: int | None = None
        self.connections = 0
        self.passed = 0
        self._allowed = 0.0
        self._held = False
        self._ends: list[socket.socket] = []
        self._changed = threading.Condition()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def allow(self, total: float) -> None:
        """
        Let C{total} bytes through towards the target, all connections together.
        """
        with self._changed:
            self._allowed = total
            self._held = False
            self._changed.notify_all()

    def waitUntilHeld(self, seconds: float = 60.0) -> None:
        """
        Wait until more has come than is allowed through.
        """
        with self._changed:
            assert self._changed.wait_for(lambda: self._held, seconds), f"{self.passed} bytes came"

    def cut(self) -> None:
        """
        End the connections there are; nothing says so to either side but the network.
        """
        ends, self._ends = self._ends, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.allow(float("inf"))
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target or 0), 20)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self.connections += 1
            self._ends += (client, server)
            for ends in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._relay, args=ends, daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, metered: bool) -> None:
        try:
            while data := source.recv(16384):
                if metered:
                    with self._changed:
                        if self.passed >= self._allowed:
                            self._held = True
                            self._changed.notify_all()
                        self._changed.wait_for(lambda: self.passed < self._allowed)
                        self.passed += len(data)
                sink.sendall(data)
        except OSError:
            pass
        finally:
            # either end closes both: the other thread wakes up
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            if not metered:
                source.close()
                sink.close()
