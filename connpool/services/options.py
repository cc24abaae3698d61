"""
The part that the options of all plugins share: texts become values, mistakes become one
line, and addresses are allowed or denied.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from twisted.internet.task import Clock
from twisted.python import usage

from connpool.addresses import Listen, Networks
from connpool.errors import AddressError, ConnpoolError, WrongSetting
from connpool.regularfiles import readRegular
from connpool.services import earlysignals
from connpool.services.access import Access
from connpool.services.limits import MOST_CONNECTIONS, connectionsFor, descriptorLimit
from connpool.services.listening import readListen
from connpool.sizes import asRate, asSize
from connpool.standardstreams import prepareStreams

__all__ = [
    "AccessOptions",
    "ServiceOptions",
    "asCount",
    "asDestination",
    "asMode",
    "asNetworks",
    "asRate",
    "asSeconds",
    "asSize",
    "defaultOf",
    "readRate",
]

T = TypeVar("T")

#: Bytes that are read of a file with a rate.
_MAX_RATE_BYTES = 100


def readRate(text: str) -> int:
    """
    Read a rate, or the file that a text with a slash names; an empty one is no limit.

    @return: bytes a second; 0 for no limit.
    @raise WrongSetting: for what is no rate, and a file that cannot be read.
    """
    rate = text
    try:
        if "/" in text:
            rate = readRegular(text)[:_MAX_RATE_BYTES].decode("utf-8", "replace").strip() or "0"
        return asRate(rate)
    except OSError as e:
        raise WrongSetting(f"cannot read {text}: {e.strerror or e}") from None
    except ValueError as e:
        raise WrongSetting(f"{f'{text}: ' * (rate is not text)}{e}") from None


def asSeconds(text: str) -> float:
    """
    @return: a finite number of seconds above zero.
    @raise ValueError: for anything else.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"{text!r} is not a time; write seconds above 0")
    return seconds


def asCount(text: str) -> int:
    """
    @return: a whole number of at least 1.
    @raise ValueError: for anything else.
    """
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) < 1:
        raise ValueError(f"{text!r} is not a count; write a whole number of at least 1")
    return int(text)


class _NoReactor:
    """
    Stands in while a description is only looked at: importing the reactor
    would defeat C{--reactor}.
    """


def asDestination(text: str, ca: str | None = None) -> str:
    """
    @param ca: the authorities to trust, as L{clientEndpoint} takes them.
    @return: C{text}, which L{clientEndpoint} takes.
    @raise ValueError: if it does not.
    """
    from connpool.addresses import clientEndpoint  # a receiver connects to nothing

    with contextlib.suppress(AttributeError):  # a parser that wants a real reactor
        clientEndpoint(_NoReactor(), text, ca=ca)
    return text


def asMode(text: str) -> int:
    """
    @return: permission bits, from octal digits.
    @raise ValueError: for anything else, and for bits beyond C{0777}.  The
        leading zero must be there: C{0o640} in a TOML file comes as C{416}.
    """
    if any(digit not in "01234567" for digit in text) or not 2 <= len(text) <= 5 or text[0] != "0":
        raise ValueError(
            f"{text!r} is not a mode; write octal digits with a leading zero such as 0640, "
            'in a file "0640"'
        )
    mode = int(text, 8)
    if mode > 0o777:
        raise ValueError(f"{text!r} has bits beyond 0777; setuid, setgid and sticky are not given")
    return mode


def asNetworks(texts: Sequence[str]) -> Networks:
    """
    @raise ValueError: for a text that is not a network.
    """
    return Networks.parse(texts)


def defaultOf(make: Callable[..., Any], name: str, form: str = "") -> str | None:
    """
    Find an option's default where it is written: in the signature of what is made.

    @param make: a class or function.
    @param name: of its parameter.
    @param form: how to write a number, as L{format} takes it.
    @return: the text that an operator would write; L{None} for L{None}.
    """
    value = inspect.signature(make).parameters[name].default
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        form = form or ".15g"
    return None if value is None else format(value, form)


class ServiceOptions(usage.Options):
    """
    Options of a plugin.

    Values are checked in C{postOptions} through L{convert}.  Under C{twistd}
    and C{twist} a mistake ends the program with one line; whoever parses these
    options without such a parent (C{twistd compose}, an embedder) gets the
    L{usage.UsageError}.

    @cvar pluginName: the plugin's name, for messages.
    """

    pluginName: ClassVar[str] = ""

    optFlags = [
        ["allow-root", None, "Run as root (also: CONNPOOL_ALLOW_ROOT=1 in the environment)"]
    ]

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        parent = getattr(self, "parent", None)
        if parent is None:
            super().parseOptions(options)
            return
        prepareStreams(discard=True)
        earlysignals.note()
        try:
            super().parseOptions(options)
        except usage.UsageError as e:
            sys.exit(f"{self.pluginName}: {e}; see twistd {self.pluginName} --help")
        self._checkFiles(parent)

    def _checkFiles(self, parent: Any) -> None:
        """
        End with one line where twistd would end with a traceback: its own files
        lie in the working directory unless it is told otherwise.
        """
        if "nodaemon" not in parent:
            return  # twist has no files
        entered = "chroot" if parent.get("chroot") else "rundir"
        directory = parent.get(entered) or "."
        if not (os.path.isdir(directory) and os.access(directory, os.X_OK)):
            sys.exit(
                f"{self.pluginName}: twistd cannot enter {directory}; name a directory with "
                f"twistd --{entered}=DIRECTORY, or leave it out"
            )
        if entered == "chroot":
            return
        files = {}
        if parent.get("pidfile"):
            files["pidfile"] = parent["pidfile"]
        if not (parent.get("syslog") or parent.get("logger")):
            log = parent.get("logfile") or "twistd.log" * (not parent.get("nodaemon"))
            if log not in {"", "-"}:
                files["logfile"] = log
        for name, path in files.items():
            directory = os.path.dirname(path) or "."
            there = path if os.path.exists(path) else directory
            if os.path.isdir(path) or not os.access(there, os.W_OK):
                sys.exit(
                    f"{self.pluginName}: twistd cannot write {path}; name another with "
                    f"twistd --{name}=FILE" + (", or none with --pidfile=" * (name == "pidfile"))
                )

    def make(self, reactor: Any) -> Any:
        """
        Make the service of these options.

        @raise ConnpoolError: for values that do not go together; one line.
        """
        raise NotImplementedError

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")

    def convert(self, name: str, parse: Callable[[Any], T]) -> T:
        """
        Replace the text of option C{name} by its value.

        @raise usage.UsageError: when C{parse} raises L{ValueError}.
        """
        try:
            value = parse(self[name])
        except ValueError as e:
            raise usage.UsageError(f"--{name}: {e}") from None
        self[name] = value
        return value

    def attempt(self, make: Callable[[Any], T]) -> T:
        """
        Make the service once, for what its constructor says to the values.  It is not
        started, and its reactor is none.

        @raise usage.UsageError: when it refuses them.
        """
        try:
            return make(Clock())
        except ConnpoolError as e:
            raise usage.UsageError(str(e)) from None

    def check(self) -> None:
        """
        Look for more that would keep the service from starting here and now, for
        C{twistd compose --check}.

        @raise usage.UsageError: the first thing.
        """

    def checkDirectory(self, name: str) -> None:
        """
        @raise usage.UsageError: unless option C{name} is a directory.
        """
        if not os.path.isdir(self[name]):
            raise usage.UsageError(f"--{name}: there is no directory {self[name]}; make it first")

    def choice(self, name: str, choices: Sequence[str]) -> None:
        """
        @raise usage.UsageError: unless option C{name} is one of C{choices}.
        """
        if self[name] not in choices:
            raise usage.UsageError(f"--{name}: {self[name]!r} is not one of {', '.join(choices)}")

    def once(self, name: str, text: str) -> None:
        """
        Set option C{name}, of which the last one would win silently.
        """
        if name in self:
            raise usage.UsageError(f"--{name}: give it once")
        self[name] = text

    def collect(self, name: str, text: str) -> None:
        """
        Add C{text} to the repeatable option C{name}.
        """
        self.setdefault(name, []).append(text)

    def asListen(
        self, name: str, text: str, *, datagrams: bool = False, streams: bool = True
    ) -> Listen:
        """
        Read the endpoint description of option C{name} with L{readListen}.

        @raise usage.UsageError: for a text that is no such description.
        """
        try:
            return readListen(text, datagrams=datagrams, streams=streams)
        except AddressError as e:
            raise usage.UsageError(f"--{name}: {e}") from None


class AccessOptions(ServiceOptions):
    """
    Options of a plugin that listens.

    @cvar defaultListen: what it listens on when nothing is said.
    @cvar takesDatagrams: whether C{udp:} descriptions are taken.
    @cvar takesStreams: whether stream endpoint descriptions are taken.
    """

    defaultListen: ClassVar[Sequence[str]] = ()
    takesDatagrams: ClassVar[bool] = False
    takesStreams: ClassVar[bool] = True

    optParameters = [
        [
            "max-connections",
            None,
            None,
            f"Connections at once [default: what open files allow, at most {MOST_CONNECTIONS}]",
        ],
        ["max-per-address", None, None, "Connections at once from one address (IPv6: one /64)"],
    ]

    def opt_listen(self, endpoint: str) -> None:
        r"""
        Listen on this endpoint, such as tcp:8640:interface=127.0.0.1 (repeatable;
        default: loopback).
        """
        self.collect("listen", endpoint)

    def opt_allow(self, network: str) -> None:
        """
        Serve this network only: CIDR, an address, or "any" (repeatable).
        """
        self.collect("allow", network)

    def opt_deny(self, network: str) -> None:
        """
        Never serve this network; wins over --allow (repeatable).
        """
        self.collect("deny", network)

    def postOptions(self) -> None:
        for name in ("allow", "deny"):
            self.setdefault(name, [])
            self.convert(name, asNetworks)
        self.setdefault("listen", list(self.defaultListen))
        self["listen"] = [self._listen(text) for text in self["listen"]]

        self._limitConnections()
        if self["max-per-address"] is not None:
            self.convert("max-per-address", asCount)

    @property
    def access(self) -> Access:
        """
        The addresses that may connect, and the limits.
        """
        return Access(
            allow=self["allow"],
            deny=self["deny"],
            maxConnections=self["max-connections"],
            maxPerPeer=self["max-per-address"],
        )

    def _limitConnections(self) -> None:
        if self["max-connections"] is None:
            self["max-connections"] = Access().maxConnections
            return
        files = descriptorLimit()
        allowed = connectionsFor(files)
        if self.convert("max-connections", asCount) > allowed:
            raise usage.UsageError(
                f"--max-connections: {files} open files are enough for {allowed}; "
                "raise LimitNOFILE= in the unit, or ulimit -Hn"
            )

    def _listen(self, text: str) -> Listen:
        return self.asListen(
            "listen", text, datagrams=self.takesDatagrams, streams=self.takesStreams
        )
