"""
C{connpool resolve NETWORK ADDRESS}: what an address is understood to be.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from connpool.addresses import TCPAddr, resolveTCPAddr, resolveUDPAddr
from connpool.errors import AddressError

__all__ = ["addArguments", "run"]


def addArguments(parser: argparse.ArgumentParser) -> None:
    """
    Declare the arguments.
    """
    parser.add_argument("network", metavar="NETWORK", help="tcp, tcp4, tcp6, udp, udp4 or udp6")
    parser.add_argument(
        "address",
        metavar="ADDRESS",
        help="HOST:PORT: a name or an address ([::1] in brackets), a number or a service",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """
    Resolve, and print the address or one line of why not.

    @return: the exit code.
    """
    from twisted.internet import reactor

    resolve: Any = resolveUDPAddr if arguments.network.startswith("udp") else resolveTCPAddr
    results: list[Any] = []

    def ended(result: Any) -> None:
        results.append(result)
        if reactor.running:
            reactor.stop()

    resolve(reactor, arguments.network, arguments.address).addBoth(ended)
    if not results:
        reactor.run()
    if not results:
        return 130
    result = results[0]
    if not isinstance(result, TCPAddr):
        result.trap(AddressError)
        if arguments.json:
            print(json.dumps({"error": str(result.value), "code": result.value.code}))
        else:
            print(f"connpool resolve: {result.value}", file=sys.stderr)
        return int(result.value.exitCode)
    if arguments.json:
        address = {"ip": result.ip, "port": result.port, "zone": result.zone}
        print(json.dumps({"address": str(result), **address}))
    else:
        print(result)
    return 0
