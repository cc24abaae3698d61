"""
A relay between a sender and a receiver: holds every byte for a while, and counts them.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from contextlib import suppress

__all__ = ["Relay", "Watch"]

_READ_BYTES = 1 << 16
#: Reads that are under way at most: the path's own memory, 32 MiB.
_READS = 512


class Watch:
    """
    What comes over one connection from the side that connected.

    @ivar accepted: when it came, by C{time.perf_counter()}.
    @ivar received: bytes.
    @ivar passed: whether they have come to C{mark}, and C{at} when.
    @ivar last: nothing is passed on after that.
    """

    def __init__(self, mark: int, last: bool = False) -> None:
        self.mark = mark
        self.last = last
        self.accepted = self.at = 0.0
        self.received = 0
        self.passed = threading.Event()

    def came(self, count: int) -> None:
        self.received += count
        if self.received >= self.mark and not self.passed.is_set():
            self.at = time.perf_counter()
            self.passed.set()


class Relay:
    """
    @param target: a port of 127.0.0.1.
    @param seconds: that each byte is held for, in each direction.
    @param rate: bytes a second that pass towards the target; 0 for no limit.
    @ivar port: of this relay.
    @ivar target: of the next connection.
    """

    def __init__(self, target: int, seconds: float = 0.0, rate: float = 0.0) -> None:
        self.target = target
        self._seconds = seconds
        self._rate = rate
        self._watch = Watch(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def expect(self, mark: int, last: bool = False) -> Watch:
        """
        Return what watches the next connection.
        """
        self._watch = Watch(mark, last)
        return self._watch

    def close(self) -> None:
        """
        Take no more connections.
        """
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            watch, self._watch = self._watch, Watch(0)
            watch.accepted = time.perf_counter()
            server = socket.create_connection(("127.0.0.1", self.target))
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for way in ((client, server, watch), (server, client, None)):
                threading.Thread(target=self._pass, args=way, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, watch: Watch | None) -> None:
        queue: deque[tuple[float, bytes]] = deque()
        rate = 0.0 if watch is None else self._rate
        # a path that is narrow does not keep much
        there, room = threading.Semaphore(0), threading.Semaphore(4 if rate else _READS)

        def write() -> None:
            free = time.monotonic()
            while True:
                there.acquire()
                due, data = queue.popleft()
                if rate:
                    free = max(free, time.monotonic()) + len(data) / rate
                    time.sleep(max(0.0, free - time.monotonic()))
                if self._seconds:
                    time.sleep(max(0.0, due - time.monotonic()))
                with suppress(OSError):
                    if data:
                        target.sendall(data)
                    else:
                        target.shutdown(socket.SHUT_WR)
                room.release()
                if not data:
                    return

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        data = b"x"
        while data:
            room.acquire()
            try:
                data = source.recv(_READ_BYTES)
            except OSError:
                data = b""
            if watch is not None:
                watch.came(len(data))
                if watch.last and watch.passed.is_set():
                    data = b""
            queue.append((time.monotonic() + self._seconds, data))
            there.release()
        writer.join(60)
        if watch is None:
            source.close()
            target.close()
