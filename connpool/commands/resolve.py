"""
C{connpool resolve NETWORK ADDRESS}: show how an address is understood.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from connpool.addresses import TCPAddr, resolveTCPAddr, resolveUDPAddr
from connpool.commands.output import complain, show
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
            show(json.dumps({"error": str(result.value), "code": result.value.code}))
        else:
            complain(f"connpool resolve: {result.value}")
        return int(result.value.exitCode)
    if arguments.json:
        address = {"ip": result.ip, "port": result.port, "zone": result.zone}
        show(json.dumps({"address": str(result), **address}))
    else:
        show(str(result))
    return 0
