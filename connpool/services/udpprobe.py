"""
C{twistd udpprobe}: keeps measuring paths and exports what it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.application.service import IService
from twisted.python import usage

from connpool.services.limits import RESERVED_DESCRIPTORS, descriptorLimit
from connpool.services.probetargets import (
    DEFAULTS,
    MOST_TARGETS,
    Target,
    makeTarget,
    readTargets,
)
from connpool.services.probing import UDPProbe
from connpool.services.status import StatusOptions, observed

__all__ = ["Options", "makeService"]


class Options(StatusOptions):
    pluginName = "udpprobe"
    synopsis = "[--to HOST:PORT…] [--targets FILE] [options]"
    longdesc = (
        "Sends datagrams at a constant rate for as long as it runs. Each round's "
        "figures go to the log, and with --status to metrics."
    )

    optParameters = [
        ["targets", None, None, "File with a line HOST:PORT [OPTION=VALUE…] for each target."],
        ["protocol", "p", "echo", "What the far sides speak: echo, irtt, stamp or tcp."],
        ["interval", "i", "1", "Seconds between sends."],
        ["size", None, None, "UDP payload in bytes [default: 64, or what the protocol needs]"],
        ["timeout", None, "2", "Seconds after which an answer is late."],
        ["round", None, "60", "Seconds whose figures are put together."],
        ["family", None, None, "4 or 6: measure by this IP version only."],
        ["source", None, None, "Address to send from."],
        ["interface", None, None, "Link to send by."],
        ["dscp", None, None, "Mark of the datagrams: 0 to 63, or a name such as EF or AF41."],
        ["ttl", None, None, "TTL or hop limit, 1 to 255."],
        ["key-file", None, None, "The secret shared with irtt or STAMP responders."],
    ]
    optFlags = [
        ["ipv4", "4", "The same as --family 4."],
        ["ipv6", "6", "The same as --family 6."],
    ]

    def opt_to(self, target: str) -> None:
        """
        Measure the path to HOST:PORT (repeatable).
        """
        self.collect("to", target)

    def postOptions(self) -> None:
        super().postOptions()
        self.setdefault("to", [])
        for flag, family in (("ipv4", "4"), ("ipv6", "6")):
            if self[flag] and self["family"] not in {None, family}:
                raise usage.UsageError(f"--{flag}: --family {self['family']} says something else")
            if self[flag]:
                self["family"] = family
        if not self["to"] and self["targets"] is None:
            raise usage.UsageError("what shall be measured? give --to HOST:PORT or --targets FILE")
        try:
            self["all"] = self.readTargets()
        except ValueError as e:
            raise usage.UsageError(str(e)) from None

    def readTargets(self) -> Sequence[Target]:
        """
        @return: the targets of C{--to}, then those of the file as it is now.
        @raise ValueError: for a mistake; one line.
        """
        defaults = {name: self[name] for name in DEFAULTS if self[name] is not None}
        targets = []
        try:
            # what the command line says for all is its own mistake
            makeTarget("localhost:1", defaults)
        except ValueError as e:
            raise ValueError(f"--{e}") from None
        for address in self["to"]:
            try:
                targets.append(makeTarget(address, defaults))
            except ValueError as e:
                raise ValueError(f"--to: {e}") from None
        if self["targets"] is not None:
            try:
                targets += readTargets(self["targets"], defaults)
            except ValueError as e:
                raise ValueError(f"--targets: {e}") from None
        self._checkAll(targets)
        return targets

    def _checkAll(self, targets: Sequence[Target]) -> None:
        if not targets:
            raise ValueError(f"--targets: {self['targets']} names no target")
        seen: set[str] = set()
        for target in targets:
            if target.name in seen:
                if self["targets"] is None:
                    raise ValueError(f"--to: {target.name} is named twice")
                raise ValueError(
                    f"--targets: {target.name} is named twice; give one of them another name="
                )
            seen.add(target.name)
        most = min(MOST_TARGETS, descriptorLimit() - RESERVED_DESCRIPTORS)
        if len(targets) > most:
            raise ValueError(
                f"--targets: {len(targets)} targets; open files and memory are enough for "
                f"{most}. Run several of these, or raise LimitNOFILE= up to {MOST_TARGETS}"
            )


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    @param options: parsed.
    @param reactor: L{None} for the global one.
    """
    if reactor is None:
        from twisted.internet import reactor
    reread = None if options["targets"] is None else options.readTargets
    return observed(options, UDPProbe(reactor, options["all"], reread), reactor)
