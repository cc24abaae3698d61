"""
Targets of C{udpprobe}: one path each, with the options of its datagrams.

A targets file has a line for each: C{HOST:PORT [OPTION=VALUE…]}, and C{#} begins a
comment.  Options that a line does not name are those of the command line.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import attrs

from connpool.addresses import splitHostPort
from connpool.addresses.goaddress import parseLiteral
from connpool.addresses.zones import checkZone
from connpool.datagram import Marking, parseDSCP
from connpool.datagram.keys import readKey
from connpool.datagram.prober import (
    DEFAULT_MARKING,
    DEFAULT_SIZE_BYTES,
    MAX_SIZE_BYTES,
    WIRES,
    leastSize,
)
from connpool.errors import AddressError
from connpool.services.options import asCount, asSeconds

__all__ = ["DEFAULTS", "MOST_TARGETS", "OTHERS", "Target", "asTarget", "makeTarget", "readTargets"]

#: Targets of one service.
MOST_TARGETS = 10_000

MAX_FILE_BYTES = 4 << 20

#: Characters of a name: it is a label of metrics.
MAX_NAME = 200

#: The name under which targets that are not exported one by one are summed.
OTHERS = "others"


@attrs.frozen
class Target:
    """
    One path to measure.

    @ivar name: of its figures; unique.
    @ivar address: C{HOST:PORT}; a name is looked up for each round.
    @ivar size: UDP payload in bytes.
    @ivar interval: seconds between sends.
    @ivar round: seconds whose figures are put together.
    @ivar timeout: seconds after which an answer is late.
    @ivar family: 4, 6, or 0 for both.
    @ivar source: address to send from; empty for the one that routing chooses.
    """

    name: str
    address: str
    protocol: str = "echo"
    interval: float = 1.0
    size: int = DEFAULT_SIZE_BYTES
    timeout: float = 2.0
    round: float = 60.0
    family: int = 0
    source: str = ""
    marking: Marking = DEFAULT_MARKING
    key: bytes | None = attrs.field(default=None, repr=False)

    @property
    def transport(self) -> str:
        """
        C{tcp} or C{udp}.
        """
        return "tcp" if self.protocol == "tcp" else "udp"


def _oneOf(choices: Mapping[str, Any], text: str) -> Any:
    if text not in choices:
        raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
    return choices[text]


def _ttl(text: str) -> int:
    ttl = asCount(text)
    if ttl > 255:
        raise ValueError(f"{text!r} is not a TTL; write a number from 1 to 255")
    return ttl


def _source(text: str) -> str:
    if parseLiteral(text) is None:
        raise ValueError(f"{text!r} is not an address")
    return text


def _name(text: str) -> str:
    if not text.isprintable() or not 0 < len(text) <= MAX_NAME:
        raise ValueError(f"{text!r} is no name of 1 to {MAX_NAME} printable characters")
    return text


#: Each option, and how its text becomes a value.
_PARSE: dict[str, Callable[[str], Any]] = {
    "name": _name,
    "protocol": partial(_oneOf, {name: name for name in WIRES}),
    "interval": asSeconds,
    "size": asCount,
    "timeout": asSeconds,
    "round": asSeconds,
    "family": partial(_oneOf, {"4": 4, "6": 6}),
    "source": _source,
    "interface": str,
    "dscp": parseDSCP,
    "ttl": _ttl,
    "key-file": partial(readKey, mayWait=False),
}

#: Options that the command line gives to all.
DEFAULTS = frozenset(_PARSE) - {"name"}


def asTarget(given: Target | str) -> Target:
    """
    Take a target, or make one of C{HOST:PORT}.

    @raise AddressError: for another text.
    """
    return makeTarget(given, {}) if isinstance(given, str) else given


def makeTarget(address: str, texts: Mapping[str, str]) -> Target:
    """
    @param address: C{HOST:PORT}.
    @param texts: options, by name.
    @raise ValueError: for a mistake; one line that begins with the option's name.
    """
    values: dict[str, Any] = {}
    for option, text in texts.items():
        try:
            values[option] = _PARSE[option](text)
        except KeyError:
            raise ValueError(f"{option}: no such option; there are {', '.join(_PARSE)}") from None
        except ValueError as e:
            raise ValueError(f"{option}: {e}") from None
    protocol = values.get("protocol", "echo")
    host, _ = splitHostPort(address, "tcp" if protocol == "tcp" else "udp")
    if "%" not in host and not values.get("interface"):
        # a link that is named may come later; one that is not is a mistake
        checkZone(host)
    marking = Marking(
        values.pop("dscp", None), values.pop("ttl", None), values.pop("interface", "")
    )
    if protocol == "tcp" and marking != DEFAULT_MARKING:
        raise ValueError("interface: with dscp and ttl, it is not for protocol tcp; source is")
    key = values.pop("key-file", None)
    try:
        least = leastSize(protocol, signed=key is not None)
    except AddressError as e:
        raise ValueError(f"key-file: {e}") from None
    size = values.setdefault("size", max(DEFAULT_SIZE_BYTES, least))
    if not least <= size <= MAX_SIZE_BYTES:
        raise ValueError(f"size: {protocol} takes {least} to {MAX_SIZE_BYTES} bytes")
    name = values.pop("name", address)
    if name == OTHERS:
        raise ValueError(f"name: {OTHERS!r} is the sum of targets beyond those exported one by one")
    return Target(name=name, address=address, marking=marking, key=key, **values)


def readTargets(path: str, defaults: Mapping[str, str]) -> Iterator[Target]:
    """
    Read a targets file.

    @param defaults: options of lines that do not name them.
    @raise ValueError: for a mistake; one line that begins with the file's name.
    """
    try:
        # a FIFO must not keep the reactor waiting
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError(f"{path}: not a regular file")
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as e:
        raise ValueError(f"{path}: {e.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{path}: longer than {MAX_FILE_BYTES} bytes")
    for number, line in enumerate(data.splitlines(), 1):
        try:
            words = line.decode().partition("#")[0].split()
            if words:
                yield makeTarget(words[0], {**defaults, **_pairs(words[1:])})
        except UnicodeDecodeError:
            raise ValueError(f"{path}:{number}: not UTF-8") from None
        except ValueError as e:
            raise ValueError(f"{path}:{number}: {e}") from None


def _pairs(words: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        option, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not OPTION=VALUE; there are {', '.join(_PARSE)}")
        if option in pairs:
            raise ValueError(f"{option}: give it once")
        pairs[option] = text
    return pairs
