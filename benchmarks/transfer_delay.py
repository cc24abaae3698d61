"""
Small files over a path with delay: round trips that are waited for must not
grow with the number of files.

    python benchmarks/transfer_delay.py [--rounds 3] [--trip 0.2] [--directory DIR]

Sends 100 and 10,000 files of 4 KiB with the real command, directly and through a
proxy that holds every byte for half a round trip in each direction, interleaved.
Start-up is measured by a file that is there already and subtracted.  Prints medians, the
ratio to the direct way, and the round trips that the difference amounts to.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.transfer import CHECKOUT, Ours, freePort


def hold(source: socket.socket, target: socket.socket, seconds: float) -> None:
    """
    Pass bytes on, each C{seconds} late, until the end.
    """
    queue: deque[tuple[float, bytes]] = deque()
    there = threading.Semaphore(0)
    room = threading.Semaphore(512)  # 512 reads of 64 KiB: the path's own memory

    def write() -> None:
        while True:
            there.acquire()
            due, data = queue.popleft()
            time.sleep(max(0.0, due - time.monotonic()))
            with suppress(OSError):
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
            room.release()

    threading.Thread(target=write, daemon=True).start()
    data = b"x"
    while data:
        room.acquire()
        try:
            data = source.recv(65536)
        except OSError:
            data = b""
        queue.append((time.monotonic() + seconds, data))
        there.release()


def delaying(port: int, seconds: float) -> int:
    """
    @return: the port of a proxy for C{port}.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", port))
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=hold, args=(one, other, seconds), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def send(source: Path, port: int, state: Path) -> float:
    """
    @return: seconds of the command.
    """
    began = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "connpool", "send", "--to", f"127.0.0.1:{port}"),
            *("--durability", "none", str(source)),
        ],
        check=True,
        capture_output=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "XDG_STATE_HOME": str(state)},
    )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trip", type=float, default=0.2, help="seconds of a round trip")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    arguments = parser.parse_args()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.directory)))
        ours = Ours("ours", work, full=False)
        ours.port = freePort()
        stack.callback(ours.stop)
        ours.start()
        slow = delaying(ours.port, arguments.trip / 2)
        one = work / "one"
        one.write_bytes(b"x")
        start = statistics.median(send(one, ours.port, work / "state") for _ in range(5))
        print(f"start-up {start:.2f} s, round trip {arguments.trip * 1000:.0f} ms")
        print(f"{'files':>7} {'direct s':>9} {'delayed s':>10} {'ratio':>6} {'round trips':>12}")
        for count in (100, 10_000):
            times: dict[int, list[float]] = {ours.port: [], slow: []}
            for number in range(arguments.rounds):
                for port, taken in times.items():
                    tree = work / f"tree-{count}-{number}-{port}"
                    for file in range(count):
                        path = tree / f"{file % 100}" / f"{file}"
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(os.urandom(4096))
                    taken.append(send(tree, port, work / "state") - start)
            direct, delayed = (statistics.median(taken) for taken in times.values())
            print(
                f"{count:7} {direct:9.2f} {delayed:10.2f} {delayed / direct:6.2f} "
                f"{(delayed - direct) / arguments.trip:12.1f}"
            )


if __name__ == "__main__":
    main()
