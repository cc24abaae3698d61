"""
Counts the calls that a file costs on either side.

C{python -m tests.transfer.counted receive DIRECTORY} is a receiver and prints its port.  At
each line of input it prints how many functions, in Python or C, its reactor called since
the last one, and how many of them read from a socket; at the end of its input it stops.
C{python -m tests.transfer.counted send ARGUMENTS} is C{connpool send} and prints the same at
the end.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter

counts: Counter[str] = Counter()
READS = {"recv", "recv_into", "read", "recvmsg"}


def count(frame, event, argument):
    if event == "call":
        counts["calls"] += 1
    elif event == "c_call":
        counts["calls"] += 1
        counts["reads"] += argument.__name__ in READS


def shown():
    line = f"{counts['calls']} {counts['reads']}"
    counts.clear()
    return line


def receive(directory):
    from twisted.internet import reactor

    from connpool.services import FileReceiver

    service = FileReceiver(reactor, directory, listen=["tcp:0:interface=127.0.0.1"])
    service.startService()
    print(service.listening.getHosts()[0].port, flush=True)

    def answer():
        for _ in sys.stdin:
            print(shown(), flush=True)
        reactor.callFromThread(service.stopService)
        reactor.callFromThread(reactor.stop)

    threading.Thread(target=answer, daemon=True).start()
    sys.setprofile(count)
    reactor.run()


def send(*words):
    from connpool.commands import main

    sys.setprofile(count)
    code = main(["send", *words])
    sys.setprofile(None)
    print(shown(), flush=True)
    raise SystemExit(code)


if __name__ == "__main__":
    {"receive": receive, "send": send}[sys.argv[1]](*sys.argv[2:])
