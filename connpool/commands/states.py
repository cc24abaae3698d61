"""
C{connpool states}: TCP connections by state, and what each state means.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

import attrs

from connpool.errors import AddressError
from connpool.observe.tcpstates import Socket, State, StateCounts, countStates, socketsOf
from connpool.observe.tcpstates_read import readSockets

__all__ = ["View", "addArguments", "run"]

#: From this many sockets on, a state is a surplus worth a word.
SURPLUS = 10

#: The longest C{--interval}, in seconds.
LONGEST = 86400.0


def addArguments(parser: argparse.ArgumentParser) -> None:
    """
    Declare the arguments.
    """
    parser.add_argument(
        "port",
        metavar="PORT",
        nargs="?",
        help="a port or a service's name (default: every port something listens on)",
    )
    parser.add_argument("--all", action="store_true", help="every TCP socket of this machine")
    parser.add_argument(
        "--watch", action="store_true", help="keep looking, and print each change (Ctrl-C ends)"
    )
    parser.add_argument(
        "--interval",
        type=float,
        default=0.2,
        metavar="SECONDS",
        help="between two looks of --watch (default %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="JSON, one object a line")


@attrs.frozen
class View:
    """
    What was seen at one moment.

    @ivar here: sockets whose local port was asked for.
    @ivar there: the other ends of such connections on this machine.
    """

    here: StateCounts
    there: StateCounts
    queues: bool

    @classmethod
    def of(cls, sockets: Sequence[Socket], ports: Collection[int] | None) -> View:
        """
        @param ports: L{None} for all sockets.
        """
        here, there = (sockets, ()) if ports is None else socketsOf(sockets, ports)
        queues = all(each.sendQueue is not None for each in sockets)
        return cls(countStates(here), countStates(there), queues)


def run(arguments: argparse.Namespace) -> int:
    """
    Look and print.

    @return: the exit code.
    """
    try:
        ports = _ports(arguments)
    except AddressError as e:
        print(f"connpool states: {e}", file=sys.stderr)
        return 2
    last = None
    while True:
        sockets = readSockets()
        listening = {each.localPort for each in sockets if each.state is State.LISTEN}
        view = View.of(sockets, listening if ports == () else ports)
        if view != last:
            print(_json(view) if arguments.json else _text(view, last), flush=True)
        if not arguments.watch:
            return 0
        last = view
        time.sleep(arguments.interval)


def _ports(arguments: argparse.Namespace) -> Collection[int] | None:
    """
    @return: the ports asked for; empty for those listened on, L{None} for all.
    @raise AddressError: for a mistake.
    """
    if not 0 < arguments.interval <= LONGEST:
        raise AddressError(f"--interval: write seconds above 0, up to {LONGEST:g}")
    if arguments.all:
        if arguments.port is not None:
            raise AddressError("a PORT or --all, not both")
        return None
    if arguments.port is None:
        return ()
    from connpool.addresses.goaddress import parsePort
    from connpool.addresses.resolve import systemServices

    return {parsePort("tcp", arguments.port, systemServices)}


def _json(view: View) -> str:
    found: dict[str, Any] = {
        "here": attrs.asdict(view.here),
        "there": attrs.asdict(view.there),
        "queues": view.queues,
    }
    return json.dumps(found)


def _text(view: View, last: View | None) -> str:
    lines = []
    if last is None:
        lines.append(f"{'':6}{'STATE':<14}{'HERE':>6}{'THERE':>7}  MEANING")
    else:
        lines.append(time.strftime("%H:%M:%S"))
    for state in State:
        here, there = view.here.of(state), view.there.of(state)
        gone = last is not None and (last.here.of(state) or last.there.of(state))
        if here or there or gone:
            lines.append(f"{'':6}{state.name:<14}{here:>6}{there:>7}  {state.meaning}")
            if here >= SURPLUS and state.surplus:
                lines.append(f"{'':33}  many: {state.surplus}")
    if len(lines) == 1:
        lines.append(f"{'':6}no sockets")
    if not view.queues:
        lines.append(f"{'':6}this system does not tell queues")
        return "\n".join(lines)
    for what, field in (
        ("bytes wait to be sent or confirmed", "sendQueueBytes"),
        ("bytes wait to be read", "receiveQueueBytes"),
        ("connections wait to be accepted", "acceptQueue"),
    ):
        here, there = getattr(view.here, field), getattr(view.there, field)
        if here or there:
            lines.append(f"{'':6}{'queue':<14}{here:>6}{there:>7}  {what}")
    return "\n".join(lines)
