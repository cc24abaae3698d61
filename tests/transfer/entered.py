"""
A receiver that tells which modules of the transfer room its files went through.

C{python -m tests.transfer.entered DIRECTORY} prints its port.  At each line of input
it prints the modules that were entered since the last one; at the end of its input
it stops.
"""

from __future__ import annotations

import sys
import threading

from twisted.internet import reactor

from connpool.services import FileReceiver

entered: set[str] = set()


def enter(frame, event, argument):
    _, found, name = frame.f_code.co_filename.rpartition("connpool/transfer/")
    if event == "call" and found:
        entered.add(name.removesuffix(".py").replace("/", "."))


def answer(service):
    for _ in sys.stdin:
        passed = sorted(entered)
        # before it is told: whoever reads it goes on at once
        entered.clear()
        print(*passed, flush=True)
    reactor.callFromThread(service.stopService)
    reactor.callFromThread(reactor.stop)


def main():
    service = FileReceiver(reactor, sys.argv[1], listen=["tcp:0:interface=127.0.0.1"])
    service.startService()
    print(service.listening.getHosts()[0].port, flush=True)
    threading.setprofile(enter)
    sys.setprofile(enter)
    threading.Thread(target=answer, args=(service,), daemon=True).start()
    reactor.run()


if __name__ == "__main__":
    main()
