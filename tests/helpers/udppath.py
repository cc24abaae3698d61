"""
A path to an echo that loses, delays and repeats, in a thread of its own.
"""

from __future__ import annotations

import heapq
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

#: From the number of a datagram to the delays, in seconds, after which it comes back.
Fate = Callable[[int], Sequence[float]]


@contextmanager
def pathTo(fate: Fate) -> Iterator[str]:
    """
    An echo for C{connpool ping}, whose numbers it reads.

    @return: its HOST:PORT.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    ended = threading.Event()

    def run() -> None:
        queue: list[tuple[float, int, bytes, object]] = []
        count = 0
        while not ended.is_set():
            wait = min(0.05, max(queue[0][0] - time.monotonic(), 0) if queue else 0.05)
            if select.select([sock], [], [], wait)[0]:
                data, peer = sock.recvfrom(70_000)
                for delay in fate(int.from_bytes(data[8:12], "big")):
                    count += 1
                    heapq.heappush(queue, (time.monotonic() + delay, count, data, peer))
            while queue and queue[0][0] <= time.monotonic():
                _, _, data, peer = heapq.heappop(queue)
                sock.sendto(data, peer)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{sock.getsockname()[1]}"
    finally:
        ended.set()
        thread.join(5)
        sock.close()
