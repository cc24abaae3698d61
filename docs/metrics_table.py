"""
The tables of metrics, written by the code when the documentation is built.
"""

from __future__ import annotations

from connpool.datagram import DatagramStats
from connpool.observe import describeFields
from connpool.observe.tcpstates import StateCounts
from connpool.pool.stats import PoolStats
from connpool.proxyprotocol import ProxyStats
from connpool.services.gate import ListenerStats
from connpool.transfer.reception import TransferStats

#: The line that the tables take the place of.
MARK = ".. metrics\n"

KINDS = {
    "transfer": ("Files received", TransferStats),
    "listener": ("Listeners", ListenerStats),
    "tcp": ("TCP states of a listener's connections", StateCounts),
    "proxy": ("PROXY headers", ProxyStats),
    "datagram": ("Datagrams", DatagramStats),
    "pool": ("Connection pools", PoolStats),
}


def tables() -> str:
    """
    One for each kind.
    """
    lines = []
    for kind, (title, snapshotClass) in KINDS.items():
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
    source[0] = source[0].replace(MARK, tables())
