"""
Writes the table of metrics into docs/observe.rst; a test compares.

Run it from the top of the checkout: python docs/metrics_table.py
"""

from __future__ import annotations

from pathlib import Path

from connpool.datagram import DatagramStats
from connpool.observe import describeFields
from connpool.observe.tcpstates import StateCounts
from connpool.pool.stats import PoolStats
from connpool.proxyprotocol import ProxyStats
from connpool.services.gate import ListenerStats
from connpool.transfer.reception import TransferStats

PAGE = Path(__file__).parent / "observe.rst"
BEGIN, END = ".. metrics begin\n", ".. metrics end\n"

KINDS = {
    "transfer": ("Files received", TransferStats),
    "listener": ("Listeners", ListenerStats),
    "tcp": ("TCP states of a listener's connections", StateCounts),
    "proxy": ("PROXY headers", ProxyStats),
    "datagram": ("Datagrams", DatagramStats),
    "pool": ("Connection pools", PoolStats),
}


def table() -> str:
    """
    What belongs between the two marks.
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


def page(text: str) -> str:
    """
    @return: C{text} with the table as it should be.
    """
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
