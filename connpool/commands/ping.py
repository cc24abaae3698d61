"""
C{connpool ping}: measure the paths to echoes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from connpool.addresses import resolveTarget, splitHostPort
from connpool.commands.pinglive import Live, complain
from connpool.commands.pingreport import asJSON, asLine, asText
from connpool.commands.samplefile import SampleFile, formatOf
from connpool.errors import AddressError, ConnpoolError, ProbeFailed
from connpool.services.limits import raiseDescriptors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from connpool.datagram import Prober, Report

__all__ = ["addArguments", "run"]

#: Targets of one command.
MOST_TARGETS = 1000

EPILOG = """\
examples:
  connpool ping 192.0.2.7:8641                     ten datagrams, one a second
  connpool ping 192.0.2.7:8641 --count 5000 --interval 0.002 --json
  connpool ping 192.0.2.7:8641 --protocol irtt --plot path.svg
  connpool ping one:8641 two:8641 three:8641 --samples night.csv --count 0
  connpool ping [fe80::1%eth0]:8641 --dscp EF      over one link, marked
  connpool ping 192.0.2.7:8641 --sweep             the path MTU

exit code: 0 when something came back from every target, 1 when nothing did from
one of them, 2 for a mistake in the command line, 7 for a name that has no address.
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


def _ttl(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 255:
        raise ValueError
    return value


_seconds.__name__ = "number of seconds"
_count.__name__ = "count"
_ttl.__name__ = "TTL"


def addArguments(parser: argparse.ArgumentParser) -> None:
    """
    Declare the arguments.
    """
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("targets", metavar="HOST:PORT", nargs="+", help="where the echo listens")
    family = parser.add_mutually_exclusive_group()
    for version in (4, 6):
        family.add_argument(
            f"-{version}",
            dest="family",
            action="store_const",
            const=version,
            default=0,
            help=f"measure by IPv{version} only",
        )
    parser.add_argument(
        "--count", type=_count, default=10, help="datagrams to send; 0: until Ctrl-C (10)"
    )
    parser.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="S", help="seconds between sends (1)"
    )
    parser.add_argument(
        "--size",
        type=_count,
        metavar="B",
        help="UDP payload in bytes (64; where the protocol needs more, that)",
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
        "--key-file", metavar="FILE", help="the secret shared with an irtt or STAMP responder"
    )
    parser.add_argument("--source", metavar="ADDRESS", default="", help="send from this address")
    parser.add_argument("--interface", metavar="LINK", default="", help="send by this link")
    parser.add_argument("--dscp", help="mark the datagrams: 0 to 63, or a name such as EF or AF41")
    parser.add_argument("--ttl", type=_ttl, help="TTL or hop limit, 1 to 255")
    parser.add_argument(
        "--sweep", action="store_true", help="find the largest datagram that gets there uncut"
    )
    parser.add_argument(
        "--samples", metavar="FILE", help="write a line for each datagram: FILE.csv or FILE.jsonl"
    )
    parser.add_argument("--plot", metavar="FILE.svg", help="draw the round trips")
    parser.add_argument("--json", action="store_true", help="print one JSON text at the end")


def run(arguments: argparse.Namespace) -> int:
    """
    Measure, and print the figures.

    @return: the exit code.
    """
    try:
        options = _options(arguments)
        if arguments.sweep:
            return _sweep(arguments, options)
        return _ping(arguments, options)
    except ConnpoolError as e:
        complain(f"connpool ping: {e}")
        return e.exitCode
    except BrokenPipeError:
        raise  # the reader has had enough
    except OSError as e:
        complain(f"connpool ping: cannot write the report: {e.strerror}")
        return 1


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    Look for mistakes before anything is sent.

    @return: the prober's options that L{_sweep} takes too.
    @raise AddressError: for the first mistake.
    """
    from connpool.datagram import Marking, parseDSCP
    from connpool.datagram.keys import readKey
    from connpool.datagram.prober import DEFAULT_SIZE_BYTES, leastSize

    targets = arguments.targets
    for target in targets:
        splitHostPort(target, _transport(arguments))
        if targets.count(target) > 1:
            raise AddressError(f"{target} is named twice")
    if len(targets) > MOST_TARGETS:
        raise AddressError(f"{len(targets)} targets; one command takes {MOST_TARGETS}")
    single = {"--plot": arguments.plot, "--sweep": arguments.sweep}
    for name, given in single.items():
        if given and len(targets) > 1:
            raise AddressError(f"{name} is about one target; run it for each")
    if arguments.plot is not None and not arguments.plot.lower().endswith(".svg"):
        raise AddressError(f"--plot {arguments.plot}: the picture is SVG; name it .svg")
    if arguments.samples is not None:
        formatOf(arguments.samples)
    if arguments.sweep and (arguments.plot is not None or arguments.samples is not None):
        raise AddressError("--sweep has no round trips to write; leave --plot and --samples out")
    marking = Marking(
        dscp=None if arguments.dscp is None else _named("--dscp", parseDSCP, arguments.dscp),
        ttl=arguments.ttl,
        interface=arguments.interface,
    )
    if arguments.protocol == "tcp":
        if arguments.sweep:
            raise AddressError("--sweep: TCP has no datagrams; choose another --protocol")
        if marking != Marking():
            raise AddressError(
                "--interface, --dscp and --ttl are not for --protocol tcp; --source is"
            )
    options = {"protocol": arguments.protocol, "source": arguments.source, "marking": marking}
    if arguments.key_file is not None:
        _named("--key-file", partial(leastSize, signed=True), arguments.protocol)
        options["key"] = _named("--key-file", readKey, arguments.key_file)
    if arguments.size is None:
        least = leastSize(arguments.protocol, signed="key" in options)
        arguments.size = max(DEFAULT_SIZE_BYTES, least)
    return options


def _named(option: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except AddressError as e:
        raise AddressError(f"{option}: {e}") from None


def _transport(arguments: argparse.Namespace) -> str:
    return "tcp" if arguments.protocol == "tcp" else "udp"


async def _resolve(reactor: Any, arguments: argparse.Namespace, target: str) -> tuple[str, int]:
    family = arguments.family
    if arguments.source and not family:
        family = 6 if ":" in arguments.source else 4
    return await resolveTarget(
        reactor,
        _transport(arguments),
        target,
        family=family,
        zone=arguments.interface,
    )


# -- measuring ---------------------------------------------------------------------


class Run:
    """
    All targets of one command.

    @ivar broken: the first failure to write to standard output.
    """

    def __init__(
        self,
        reactor: Any,
        arguments: argparse.Namespace,
        options: dict[str, Any],
        live: Live,
        samples: SampleFile | None,
    ) -> None:
        self._reactor = reactor
        self._arguments = arguments
        self._options = options
        self._live = live
        self._samples = samples
        self._probers: list[Prober] = []
        self._waiting: list[Any] = []
        self._stopped = False
        self.broken: OSError | None = None

    async def all(self) -> list[Report | ConnpoolError | None]:
        """
        @return: for each target its report, or why it could not be measured, or
            L{None} if it was stopped before.
        """
        from twisted.internet.defer import Deferred, gatherResults

        targets = self._arguments.targets
        self._waiting = [
            Deferred.fromCoroutine(self._one(target, i / len(targets)))
            for i, target in enumerate(targets)
        ]
        results: list[Report | ConnpoolError | None] = await gatherResults(list(self._waiting))
        return results

    async def _one(self, target: str, share: float) -> Report | ConnpoolError | None:
        """
        @param share: of an interval, after which it begins: targets take turns.
        """
        from twisted.internet.defer import CancelledError
        from twisted.internet.task import deferLater

        from connpool.datagram import makeProber

        a = self._arguments
        try:
            host, port = await _resolve(self._reactor, a, target)
            await deferLater(self._reactor, share * a.interval)
            prober = makeProber(
                self._reactor,
                host,
                port,
                count=a.count or None,
                interval=a.interval,
                size=a.size,
                timeout=a.timeout,
                onSample=partial(self._told, target),
                **self._options,
            )
            done = prober.start()
            self._show(self._live.begin)
            self._probers.append(prober)
            return await done
        except ConnpoolError as e:
            if len(a.targets) > 1 and not self._stopped:
                complain(f"connpool ping: {target}: {e}")
            return e
        except CancelledError:
            return None

    def _told(self, target: str, sample: Any) -> None:
        if self._samples is not None:
            self._samples.write(target, sample)
        self._show(self._live.sample, target, sample)

    def _show(self, show: Callable[..., None], *words: Any) -> None:
        if self.broken is None:
            try:
                show(*words)
            except OSError as e:  # nothing can be shown any more
                self.broken = e
                self._reactor.callLater(0, self.stop)

    def stop(self) -> None:
        """
        End all of it, with reports of the targets that were begun.
        """
        self._stopped = True
        for prober in self._probers:
            prober.stop()
        for each in self._waiting:
            each.cancel()


def _ping(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    a = arguments
    if len(a.targets) > 1:
        raiseDescriptors()
    if a.plot is not None:
        # an hour of measuring is not to be lost for a typing error
        _writeTo(a.plot, "")
    live = Live(a, len(a.targets))
    samples = None if a.samples is None else SampleFile(a.samples)
    run: list[Run] = []

    async def measure(reactor: Any) -> Any:
        run.append(Run(reactor, a, options, live, samples))
        # Ctrl-C ends it with a report
        reactor.addSystemEventTrigger("before", "shutdown", run[0].stop)
        return await run[0].all()

    try:
        results = _react(measure)
        if run[0].broken is not None:
            raise run[0].broken
    finally:
        if samples is not None:
            samples.close()
        live.end()
    code = _tell(a, results)
    if samples is not None:
        samples.check()
    return code


def _tell(a: argparse.Namespace, results: list[Any]) -> int:
    """
    Print the reports.

    @return: the exit code.
    """
    pairs = [pair for pair in zip(a.targets, results, strict=True) if pair[1] is not None]
    failures = [each for _, each in pairs if isinstance(each, ConnpoolError)]
    reports = [(name, each) for name, each in pairs if not isinstance(each, ConnpoolError)]
    if not pairs:
        raise KeyboardInterrupt
    if len(a.targets) == 1 and failures:
        raise failures[0]
    if a.json:
        objects = [_asJSON(name, each) for name, each in pairs]
        print(json.dumps(objects if len(a.targets) > 1 else objects[0], indent=2), flush=True)
    elif len(a.targets) == 1:
        print(asText(reports[0][1]), flush=True)
    elif reports:
        print("\n" + "\n".join(asLine(name, report) for name, report in reports), flush=True)
    if a.plot is not None:
        _plot(reports[0][1], a.plot)
    if failures:
        return max(each.exitCode for each in failures)
    return 0 if all(report.received for _, report in reports) else 1


def _asJSON(name: str, result: Any) -> dict[str, Any]:
    if isinstance(result, ConnpoolError):
        return {"name": name, "error": str(result), "code": result.code}
    return asJSON(name, result)


def _plot(report: Any, path: str) -> None:
    from connpool.datagram import plot

    _writeTo(path, plot(report))


def _writeTo(path: str, picture: str) -> None:
    """
    @param picture: empty to find out whether one could be written; an older one stays then.
    """
    try:
        with open(path, "w" if picture else "a", encoding="utf-8") as file:
            file.write(picture)
    except OSError as e:
        raise ProbeFailed(f"--plot: cannot write {path}: {e.strerror}") from None


def _sweep(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    from connpool.datagram import sweep
    from connpool.datagram.prober import MAX_SIZE_BYTES

    async def measure(reactor: Any) -> Any:
        host, port = await _resolve(reactor, arguments, arguments.targets[0])
        return await sweep(reactor, host, port, timeout=arguments.timeout, **options)

    report = _react(measure)
    if arguments.json:
        print(json.dumps(attrs.asdict(report), indent=2))
        return 0
    for size, passed in report.tried:
        print(f"{size:6} bytes  {'came back' if passed else 'lost'}")
    what = "path MTU" if report.largest < MAX_SIZE_BYTES else "path MTU at least"
    print(f"{report.target}: {report.largest} bytes of payload get there, {what} {report.mtu}")
    return 0


def _react(measure: Callable[[Any], Awaitable[Any]]) -> Any:
    """
    Run the reactor until C{measure(reactor)} has ended.

    @return: its result; a failure is raised.
    """
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred
    from twisted.internet.error import ReactorNotRunning
    from twisted.python.failure import Failure

    results: list[Any] = []

    async def main() -> Any:
        return await measure(reactor)

    def ended(result: Any) -> None:
        results.append(result)
        with contextlib.suppress(ReactorNotRunning):
            reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()).addBoth(ended))
    reactor.run()
    if not results:
        raise KeyboardInterrupt
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]
