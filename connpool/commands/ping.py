"""
C{connpool ping}: measure the path to an echo.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from connpool.addresses import resolveTCPAddr, resolveUDPAddr, splitHostPort
from connpool.errors import AddressError, ConnpoolError, ProbeFailed

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

__all__ = ["addArguments", "run"]

EPILOG = """\
examples:
  connpool ping 192.0.2.7:8641                     ten datagrams, one a second
  connpool ping 192.0.2.7:8641 --count 5000 --interval 0.002 --json
  connpool ping 192.0.2.7:8641 --protocol irtt --plot path.svg
  connpool ping 192.0.2.7:8641 --sweep             the path MTU

exit code: 0 when something came back, 1 when nothing did, 2 for a mistake in
the command line, 7 for a name that has no address.
"""


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 86_400:
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 100_000_000:
        raise ValueError
    return value


_seconds.__name__ = "number of seconds"
_count.__name__ = "count"


def addArguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("target", metavar="HOST:PORT", help="where the echo listens")
    parser.add_argument(
        "--count", type=_count, default=10, help="datagrams to send; 0: until Ctrl-C (10)"
    )
    parser.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="S", help="seconds between sends (1)"
    )
    parser.add_argument(
        "--size", type=_count, default=64, metavar="B", help="UDP payload in bytes (64)"
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="seconds after which an answer is late (2)",
    )
    parser.add_argument(
        "--protocol",
        choices=("echo", "irtt", "stamp", "tcp"),
        default="echo",
        help="what the far side speaks; irtt and stamp tell the directions apart (echo)",
    )
    parser.add_argument(
        "--sweep", action="store_true", help="find the largest datagram that gets there uncut"
    )
    parser.add_argument("--plot", metavar="FILE.svg", help="draw the round trips")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def run(arguments: argparse.Namespace) -> int:
    try:
        splitHostPort(arguments.target)  # unlike Go, neither part may be empty
        if arguments.sweep:
            return _sweep(arguments)
        report = _probe(arguments)
        text = json.dumps(asJSON(report), indent=2) if arguments.json else asText(report)
        print(text, flush=True)
        if arguments.plot is not None:
            _plot(report, arguments.plot)
    except ConnpoolError as e:
        print(f"connpool ping: {e}", file=sys.stderr)
        return e.exitCode
    except BrokenPipeError:
        raise  # the reader has had enough
    except OSError as e:
        print(f"connpool ping: cannot write the report: {e.strerror}", file=sys.stderr)
        return 1
    return 0 if report.received else 1


def _probe(arguments: argparse.Namespace) -> Any:
    from connpool.datagram import makeProber

    live = Live(arguments)
    broken: list[OSError] = []

    def begin(reactor: Any, host: str, port: int) -> Deferred[Any]:
        def onAnswer(number: int, rtt: float) -> None:
            try:
                live.answer(number, rtt)
            except OSError as e:  # nothing can be shown any more
                broken.append(e)
                prober.stop()

        prober = makeProber(
            reactor,
            host,
            port,
            protocol=arguments.protocol,
            count=arguments.count or None,
            interval=arguments.interval,
            size=arguments.size,
            timeout=arguments.timeout,
            onAnswer=onAnswer,
        )
        done = prober.start()
        # Ctrl-C ends it with a report
        reactor.addSystemEventTrigger("before", "shutdown", prober.stop)
        live.begin()
        return done

    try:
        report = _react(arguments, begin)
    finally:
        live.end()
    if broken:
        raise broken[0]
    return report


def _sweep(arguments: argparse.Namespace) -> int:
    from twisted.internet.defer import Deferred

    from connpool.datagram import sweep
    from connpool.datagram.prober import MAX_SIZE

    if arguments.protocol == "tcp":
        raise AddressError("--sweep: TCP has no datagrams; choose another --protocol")

    def begin(reactor: Any, host: str, port: int) -> Deferred[Any]:
        return Deferred.fromCoroutine(
            sweep(reactor, host, port, protocol=arguments.protocol, timeout=arguments.timeout)
        )

    report = _react(arguments, begin)
    if arguments.json:
        print(json.dumps(attrs.asdict(report), indent=2))
        return 0
    for size, passed in report.tried:
        print(f"{size:6} bytes  {'came back' if passed else 'lost'}")
    what = "path MTU" if report.largest < MAX_SIZE else "path MTU at least"
    print(f"{report.target}: {report.largest} bytes of payload get there, {what} {report.mtu}")
    return 0


def _plot(report: Any, path: str) -> None:
    from connpool.datagram import plot

    try:
        Path(path).write_text(plot(report), encoding="utf-8")
    except OSError as e:
        raise ProbeFailed(f"--plot: cannot write {path}: {e.strerror}") from None


def _react(arguments: argparse.Namespace, begin: Callable[[Any, str, int], Deferred[Any]]) -> Any:
    """
    Look the target up, and run the reactor until what C{begin} starts has ended.

    @return: its result; a failure is raised.
    """
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.error import ReactorNotRunning
    from twisted.python.failure import Failure

    results: list[Any] = []

    async def measure() -> Any:
        if arguments.protocol == "tcp":
            address = await resolveTCPAddr(reactor, "tcp", arguments.target)
        else:
            address = await resolveUDPAddr(reactor, "udp", arguments.target)
        host = f"{address.ip}%{address.zone}" if address.zone else str(address.ip)
        return await begin(reactor, host, address.port)

    def ended(result: Any) -> None:
        results.append(result)
        with contextlib.suppress(ReactorNotRunning):
            reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(measure()).addBoth(ended))
    reactor.run()
    if not results:
        raise KeyboardInterrupt
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


class Live:
    """
    What is shown while it runs: each answer, or on a terminal a line of counts
    when answers come faster than one reads.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._each = arguments.interval >= 0.1 and not arguments.json
        self._line = sys.stderr.isatty() and not self._each
        self._arguments = arguments
        self._last = 0.0
        self._answers = 0

    def begin(self) -> None:
        a = self._arguments
        if not a.json:
            print(f"{a.target}: {a.size} bytes every {a.interval:g} s", flush=True)

    def answer(self, number: int, rtt: float) -> None:
        self._answers += 1
        if self._each:
            print(f"#{number}  {rtt * 1e3:.3f} ms", flush=True)
        elif self._line and time.monotonic() - self._last > 0.2:
            self._last = time.monotonic()
            of = f" of {self._arguments.count}" if self._arguments.count else ""
            print(f"\r{self._answers}{of} answers, {rtt * 1e3:.3f} ms ", end="", file=sys.stderr)

    def end(self) -> None:
        if self._line and self._answers:
            print("\r\033[K", end="", file=sys.stderr)


def asJSON(report: Any) -> dict[str, Any]:
    """
    @return: the report as plain values; times in seconds, without the points.
    """
    fields = attrs.asdict(report, filter=attrs.filters.exclude("points"))
    return {**fields, "loss": report.loss}


def _spread(name: str, spread: Any) -> str:
    if spread is None:
        return ""
    parts = [("min", spread.min), ("mean", spread.mean)]
    parts += [("p50", spread.p50), ("p95", spread.p95), ("p99", spread.p99), ("p99.9", spread.p999)]
    parts += [("max", spread.max), ("stddev", spread.stddev)]
    values = "  ".join(f"{word} {value * 1e3:.3f}" for word, value in parts if value is not None)
    return f"{name:10} {values} ms\n"


def asText(report: Any) -> str:
    """
    @return: the report for people.
    """
    r = report
    where = ""
    if r.lostUp is not None:
        where = f" (there {r.lostUp}, back {r.lostDown})"
    text = (
        f"\n{r.target} {r.protocol}, {r.size} bytes: {r.sent} sent, {r.received} received, "
        f"{r.lost} lost{where} = {r.loss * 100:.2f} %\n"
    )
    odd = {
        "duplicates": r.duplicates,
        "reordered": r.reordered,
        "late": r.late,
        "ignored": r.ignored,
        **r.errors,
    }
    if any(odd.values()):
        text += ", ".join(f"{name} {n}" for name, n in odd.items() if n) + "\n"
    text += _spread("rtt", r.rtt)
    if r.jitter is not None:
        text += f"{'jitter':10} {r.jitter * 1e3:.3f} ms (RFC 3550)\n"
    text += _spread("ipdv", r.ipdv)
    if r.up is not None:
        note = "" if r.clocksPlausible else "  (the clocks disagree: one-way delays are off by it)"
        text += _spread("there", r.up) + _spread("back", r.down) + _spread("remote", r.remote)
        text += f"{'offset':10} {r.offset * 1e3:.3f} ms{note}\n"
    text += _spread("lateness", r.lateness)
    return text.rstrip("\n")
