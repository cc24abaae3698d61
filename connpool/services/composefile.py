"""
The file that C{twistd compose} reads: TOML in, argument lists out.

Theory of operation
===================
C{[services.NAME]} holds C{plugin = "…"} and the plugin's long options as keys.
Nothing here interprets a value: an entry becomes the argument list that the
plugin's own C{Options} would get from a command line, so there is one
validation.  What getopt would let pass silently is refused before: names that
are only the beginning of an option, a value for a flag, several values where
the last one would win.

An option of a plugin that is itself called C{plugin} or C{args} cannot be set.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import attrs
from twisted.python import usage

from connpool.addresses import Listen

__all__ = ["Binding", "Entry", "argumentsOf", "bindingOf", "clashes", "didYouMean", "readEntries"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z", re.ASCII)


@attrs.frozen
class Entry:
    """
    One C{[services.NAME]}.

    @ivar options: long option name to what TOML says: text, number, boolean
        or a list of them.
    @ivar args: positional arguments.
    """

    name: str
    plugin: str
    options: Mapping[str, Any]
    args: tuple[str, ...]


def didYouMean(wrong: str, known: Iterable[str]) -> str:
    """
    @return: C{"; did you mean X?"}, or nothing when nothing is near.
    """
    near = sorted(name for name in known if name.startswith(wrong)) or get_close_matches(
        wrong, sorted(known), 1
    )
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def readEntries(text: str, mistakes: list[str]) -> list[Entry]:
    """
    @param mistakes: gets one line for each mistake in the structure.
    @raise ValueError: if C{text} is not TOML.
    """
    document = tomllib.loads(text)
    mistakes += [
        f"unknown table or key {key!r}; services are tables [services.NAME]"
        for key in document
        if key != "services"
    ]
    services = document.get("services")
    if not isinstance(services, dict) or not services:
        mistakes.append('no service; add a table [services.NAME] with plugin = "…"')
        return []
    return [
        entry
        for name, table in services.items()
        if (entry := _readEntry(name, table, mistakes)) is not None
    ]


def _readEntry(name: str, table: Any, mistakes: list[str]) -> Entry | None:
    if not _NAME.match(name):
        mistakes.append(
            f"services.{name!r}: not a name; use up to 63 letters, digits, '.', '_' and '-'"
        )
        return None
    if not isinstance(table, dict):
        mistakes.append(f"services.{name}: not a table; write [services.{name}]")
        return None
    options = dict(table)
    plugin = options.pop("plugin", None)
    args = options.pop("args", [])
    if not isinstance(plugin, str) or not plugin:
        mistakes.append(
            f'services.{name}: which plugin? add plugin = "…" (twistd --help lists them)'
        )
        return None
    if not isinstance(args, list) or not all(isinstance(word, str) for word in args):
        mistakes.append(f'services.{name}: args is a list of texts; write args = ["…"]')
        return None
    return Entry(name, plugin, options, tuple(args))


def argumentsOf(entry: Entry, options: usage.Options, mistakes: list[str]) -> list[str]:
    """
    @param options: an instance of the plugin's options; only its grammar is
        looked at.
    @param mistakes: gets one line for each key that cannot be used.
    @return: the argument list that says what C{entry} says.
    """
    takesValue = {
        name.removesuffix("="): name.endswith("=")
        for name in options.longOpt
        # these print and end the program
        if name not in {"help", "version"} and not name.startswith("help-")
    }
    words: list[str] = []
    for key, value in entry.options.items():
        try:
            if key not in takesValue:
                raise usage.UsageError(
                    f"{entry.plugin} has no option {key!r}{didYouMean(key, takesValue)}"
                    f" (twistd {entry.plugin} --help lists them)"
                )
            if takesValue[key]:
                repeats = not isinstance(options._dispatch.get(key), usage.CoerceParameter)
                words += [f"--{key}={text}" for text in _texts(key, value, repeats)]
            elif not isinstance(value, bool):
                raise usage.UsageError(f"{key} is a flag; write {key} = true or leave it out")
            elif value:
                words.append(f"--{key}")
        except usage.UsageError as e:
            mistakes.append(f"services.{entry.name}: {e}")
    return [*words, "--", *entry.args] if entry.args else words


def _texts(key: str, value: Any, repeats: bool) -> Iterator[str]:
    if isinstance(value, list):
        if not repeats:
            raise usage.UsageError(f"{key} takes one value, not a list")
        for item in value:
            yield from _texts(key, item, repeats=False)
    elif isinstance(value, bool):
        raise usage.UsageError(f'{key} takes a value, not a flag; write {key} = "…"')
    elif isinstance(value, str | int | float):
        yield str(value)
    else:
        raise usage.UsageError(f'{key} takes text or a number; write {key} = "…"')


# -- two services on one port -------------------------------------------------


@attrs.frozen
class Binding:
    """
    The part of the machine that a listener will take for itself alone.

    @ivar kind: C{tcp}, C{udp}, C{unix} or C{systemd}.
    @ivar place: the port, path or name.
    @ivar interface: of C{tcp} and C{udp}: normalised; empty for all of IPv4, C{::}
        for all of IPv6, and of C{tcp}, as Linux has it, of IPv4 too.
    """

    kind: str
    place: str
    interface: str = ""

    def excludes(self, other: Binding) -> bool:
        """
        @return: whether only one of the two can be had.
        """
        if (self.kind, self.place) != (other.kind, other.place):
            return False
        return any(
            mine == theirs or (mine[0] == theirs[0] and not (mine[1] and theirs[1]))
            for mine in self._parts()
            for theirs in other._parts()
        )

    def _parts(self) -> Iterator[tuple[int, str]]:
        """
        @return: the address families, each with the address in it, or nothing for all.
        """
        everywhere = self.interface == "::"
        if ":" in self.interface:
            yield 6, "" if everywhere else self.interface
        # our UDP sockets are of one family
        if ":" not in self.interface or (everywhere and self.kind == "tcp"):
            yield 4, "" if everywhere else self.interface


_KINDS = {"tcp": "tcp", "tcp6": "tcp", "ssl": "tcp", "udp": "udp", "unix": "unix"}


def bindingOf(listen: Listen) -> Binding | None:
    """
    @return: L{None} where it cannot be told, or nothing can clash: a port that
        the system chooses, one that is shared on purpose.
    """
    words = [listen.kind, *listen.arguments]
    at = next((i for i, word in enumerate(words) if word in _KINDS or word == "systemd"), None)
    if at is None:
        return None
    keywords, rest = listen.keywords, words[at + 1 :]
    if "systemd" in words:
        # the same descriptor twice would share its clients out at random
        which = keywords.get("name") or keywords.get("index")
        return Binding("systemd", which) if which else None
    place = rest[0] if rest else keywords.get("port", keywords.get("address", ""))
    kind = _KINDS[words[at]]
    if kind == "unix":
        return Binding(kind, place)
    if place in {"", "0"} or keywords.get("reusePort") == "yes":
        return None
    interface = keywords.get("interface", "")
    try:
        address = ipaddress.ip_address(interface)
        interface = "" if str(address) == "0.0.0.0" else str(address)  # noqa: S104 - compared with
    except ValueError:
        pass  # empty, or a name
    return Binding(kind, place, interface)


def clashes(bindings: Iterable[tuple[str, str, Binding]]) -> Iterator[str]:
    """
    @param bindings: the service, the description as written, and its binding.
    @return: one line for each binding that an earlier one excludes.
    """
    taken: dict[tuple[str, str], list[tuple[str, Binding]]] = {}
    for name, description, binding in bindings:
        others = taken.setdefault((binding.kind, binding.place), [])
        for other, theirs in others:
            if binding.excludes(theirs):
                yield (
                    f"{name}: listens on {description}, which {other} already takes; "
                    "choose another port"
                )
                break
        others.append((name, binding))
