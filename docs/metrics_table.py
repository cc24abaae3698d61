"""
The tables of metrics, written by the code when the documentation is built.
"""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module

import attrs

import connpool
from connpool.observe import describeFields

#: The line that the tables take the place of.
MARK = ".. metrics\n"

#: Kinds with a title of their own, in this order; others follow.
TITLES = {
    "transfer": "Files received",
    "web": "HTTP requests",
    "outbox": "Files sent",
    "listener": "Listeners",
    "tcp": "TCP states of a listener's connections",
    "proxy": "PROXY headers",
    "datagram": "Datagrams",
    "pool": "Connection pools",
}


def snapshotClasses() -> dict[str, type]:
    """
    Every kind of source that there is, and what its C{stats()} returns.
    """
    found: dict[str, type] = {}
    for module in pkgutil.walk_packages(connpool.__path__, "connpool."):
        if module.name.endswith("__main__") or ".testing" in module.name:
            continue
        for source in vars(import_module(module.name)).values():
            kind = getattr(source, "kind", None)
            stats = getattr(source, "stats", None)
            if not (isinstance(source, type) and isinstance(kind, str) and callable(stats)):
                continue
            name = str(stats.__annotations__.get("return"))
            returned = getattr(sys.modules[stats.__module__], name, None)
            if isinstance(returned, type) and attrs.has(returned):
                found[kind] = returned
            else:
                found.setdefault(kind, type(None))
    order = [*TITLES, *sorted(set(found) - set(TITLES))]
    return {kind: found[kind] for kind in order if kind in found}


def tables() -> str:
    """
    One for each kind.
    """
    lines = []
    for kind, snapshotClass in snapshotClasses().items():
        title = TITLES.get(kind, kind.capitalize())
        lines += ["", title, "^" * len(title), "", ".. list-table::", "   :header-rows: 1"]
        lines += ["   :widths: 50 12 38", "", "   * - Metric", "     - Type", "     - Meaning"]
        for field in describeFields(kind, snapshotClass):
            labels = f" ``{{{field.label}=}}``" if field.label else ""
            lines += [f"   * - ``{field.metric}``{labels}", f"     - {field.type}"]
            lines += [f"     - {field.help}"]
    return "\n".join([*lines, "", ""])


def insert(_app: object, _name: str, source: list[str]) -> None:
    """
    Sphinx's C{source-read} event.
    """
    if MARK in source[0]:
        source[0] = source[0].replace(MARK, tables())
