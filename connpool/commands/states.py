"""
C{connpool states}: TCP connections by state, and the meaning of each state.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs

from connpool.addresses import Networks
from connpool.commands.output import complain, show
from connpool.errors import AddressError, StatesUnavailable
from connpool.observe.tcpstates import Socket, State, StateCounts, countStates, socketsOf
from connpool.observe.tcpstates_read import findProcesses, readSockets

__all__ = ["Question", "View", "addArguments", "run"]

#: From this many sockets on, a state is a surplus worth a word.
SURPLUS_SOCKETS = 10

#: The longest C{--interval}.
LONGEST_INTERVAL_SECONDS = 86400.0


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
        "--state",
        action="append",
        metavar="STATE",
        help="only sockets in this state, such as CLOSE_WAIT or close-wait (repeatable)",
    )
    parser.add_argument(
        "--peer",
        action="append",
        metavar="NETWORK",
        help="only connections with this network: CIDR or an address (repeatable)",
    )
    parser.add_argument(
        "--sockets",
        action="store_true",
        help="also each socket, with its peer, its queues and, where permitted, its process",
    )
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
class Question:
    """
    The sockets that were asked for.

    @ivar ports: local ports; empty for those listened on, L{None} for all.
    @ivar states: empty for all.
    @ivar peers: empty for all.
    @ivar each: whether each socket shall be shown.
    """

    ports: Collection[int] | None
    states: frozenset[State]
    peers: Networks
    each: bool

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Question:
        """
        @raise AddressError: for a mistake.
        """
        if not 0 < arguments.interval <= LONGEST_INTERVAL_SECONDS:
            raise AddressError(
                f"--interval: write seconds above 0, up to {LONGEST_INTERVAL_SECONDS:g}"
            )
        try:
            peers = Networks.parse(arguments.peer or ())
        except ValueError as e:
            raise AddressError(f"--peer: {e}") from None
        states = frozenset(map(_state, arguments.state or ()))
        return cls(_ports(arguments), states, peers, arguments.sockets)

    def takes(self, socket: Socket, peer: str) -> bool:
        """
        @param peer: the address of the end that is not ours.
        """
        return (not self.states or socket.state in self.states) and (
            not self.peers or peer in self.peers
        )


def _state(text: str) -> State:
    name = text.upper().replace("-", "_")
    try:
        return State[name]
    except KeyError:
        known = ", ".join(state.name for state in State)
        raise AddressError(f"--state: {text!r} is not one of {known}") from None


def _ports(arguments: argparse.Namespace) -> Collection[int] | None:
    if arguments.all:
        if arguments.port is not None:
            raise AddressError("a PORT or --all, not both")
        return None
    if arguments.port is None:
        return ()
    from connpool.addresses.goaddress import parsePort
    from connpool.addresses.resolve import systemServices

    return {parsePort("tcp", arguments.port, systemServices)}


@attrs.frozen
class View:
    """
    The sockets at one moment.

    @ivar here: of those whose local port was asked for.
    @ivar there: of the other ends of such connections on this machine.
    @ivar queues: whether the system told the queues.
    @ivar sockets: each of them, if that was asked for, with its process.
    """

    here: StateCounts
    there: StateCounts
    queues: bool
    sockets: tuple[tuple[Socket, str], ...] = ()

    @classmethod
    def of(
        cls, sockets: Sequence[Socket], question: Question, processes: Mapping[int, str]
    ) -> View:
        """
        @param processes: by inode.
        """
        ports = question.ports
        if ports == ():
            ports = {each.localPort for each in sockets if each.state is State.LISTEN}
        here, there = (sockets, ()) if ports is None else socketsOf(sockets, ports)
        here = [each for each in here if question.takes(each, each.remoteIp)]
        there = [each for each in there if question.takes(each, each.localIp)]
        queues = all(each.sendQueue is not None for each in sockets)
        shown = [(each, processes.get(each.inode, "")) for each in (*here, *there) if question.each]
        return cls(countStates(here), countStates(there), queues, tuple(shown))


def run(arguments: argparse.Namespace) -> int:
    """
    Look and print.

    @return: the exit code.
    """
    try:
        question = Question.of(arguments)
    except AddressError as e:
        complain(f"connpool states: {e}")
        return 2
    last = None
    while True:
        try:
            sockets = readSockets()
        except StatesUnavailable as e:
            complain(f"connpool states: {e}")
            return e.exitCode
        view = View.of(sockets, question, findProcesses() if question.each else {})
        if view != last:
            show(_json(view) if arguments.json else _text(view, last))
        if not arguments.watch:
            return 0
        last = view
        time.sleep(arguments.interval)


def _json(view: View) -> str:
    found: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "here": attrs.asdict(view.here),
        "there": attrs.asdict(view.there),
        "queues": view.queues,
    }
    if view.sockets:
        found["sockets"] = [
            {
                "state": each.state.name,
                "local": each.local,
                "peer": each.remote,
                "sendQueue": each.sendQueue,
                "receiveQueue": each.receiveQueue,
                "process": process or None,
            }
            for each, process in view.sockets
        ]
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
            if here >= SURPLUS_SOCKETS and state.surplus:
                lines.append(f"{'':33}  many: {state.surplus}")
    if len(lines) == 1:
        lines.append(f"{'':6}no sockets")
    if not view.queues:
        lines.append(f"{'':6}this system does not tell queues")
        return "\n".join(lines + _listing(view))
    for meaning, field in (
        ("bytes wait to be sent or confirmed", "sendQueueBytes"),
        ("bytes wait to be read", "receiveQueueBytes"),
        ("connections wait to be accepted", "acceptQueue"),
    ):
        here, there = getattr(view.here, field), getattr(view.there, field)
        if here or there:
            lines.append(f"{'':6}{'queue':<14}{here:>6}{there:>7}  {meaning}")
    return "\n".join(lines + _listing(view))


def _listing(view: View) -> list[str]:
    """
    @return: a line for each socket, as C{ss} has it.
    """
    if not view.sockets:
        return []
    ends = [("LOCAL", "PEER"), *((each.local, each.remote) for each, _ in view.sockets)]
    wide, far = (max(len(pair[side]) for pair in ends) for side in (0, 1))

    def line(state: str, local: str, peer: str, queues: Sequence[Any], process: str) -> str:
        sent, came = ("" if queue is None else queue for queue in queues)
        text = f"{'':6}{state:<14}{local:<{wide}}  {peer:<{far}}{sent:>9}{came:>9}  {process}"
        return text.rstrip()

    return [
        line("STATE", "LOCAL", "PEER", ("SEND-Q", "RECV-Q"), "PROCESS"),
        *(
            line(
                each.state.name,
                each.local,
                each.remote,
                (each.sendQueue, each.receiveQueue),
                process,
            )
            for each, process in view.sockets
        ),
    ]
