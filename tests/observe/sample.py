"""
Services that look like a busy process, out of the rooms' own snapshot classes.
"""

from __future__ import annotations

import attrs
from twisted.application.service import MultiService, Service
from twisted.internet.address import IPv4Address
from zope.interface import implementer

from connpool.datagram import DatagramStats
from connpool.interfaces import ILiveTransfers, IReadiness, IRecentTransfers, IStatsSource
from connpool.observe.tcpstates import StateCounts
from connpool.pool.stats import BOUNDS_SECONDS, Histogram, PoolStats
from connpool.proxyprotocol import ProxyStats
from connpool.services.access import ListenerStats
from connpool.services.probing import ProbeStats
from connpool.transfer.names import displayName
from connpool.transfer.receive.policy import TransferStats
from connpool.transfer.records import EndedTransfer, LiveTransfer

#: Names as hostile senders choose them.
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>document.title='owned'</script>",
    "\u202egnp.exe",
    '"onmouseover="alert(1)',
    "data: x\n\nevent: look\ndata: {}",
    "{{constructor.constructor('alert(1)')()}}",
    "a\u2028b&lt;i&gt;",
    "__proto__",
    "x" * 255,
)


@implementer(IStatsSource, ILiveTransfers, IReadiness, IRecentTransfers)
class Source(Service):
    """
    Says what it was told.
    """

    def __init__(self, kind, name, snapshot, transfers=()):
        self.kind = kind
        self.name = name
        self.snapshot = snapshot
        self.transfers = list(transfers)
        self.why = None
        self.recent = []
        self.hosts = []

    def getHosts(self):
        return self.hosts

    def recentTransfers(self):
        return self.recent

    def stats(self):
        return self.snapshot

    def liveTransfers(self, limit):
        return self.transfers[:limit]

    def trouble(self):
        return self.why


def histogram(*counts):
    padded = (*counts, *([0] * (len(BOUNDS_SECONDS) - len(counts))))
    return Histogram(BOUNDS_SECONDS, padded, 0.5 * sum(counts))


def poolStats(**given):
    values = dict.fromkeys((field.name for field in attrs.fields(PoolStats)), 0)
    values |= {
        "state": "open",
        "down": False,
        "closed": {"idle": 3, "peer": 1},
        "waitMost": 0.25,
        "wait": histogram(5, 3, 0, 1),
    }
    values |= {"use": histogram(0, 9), "dial": histogram(), **given}
    return PoolStats(**values)


def transfer(number, name, **given):
    values = {
        "transferId": f"{number:032x}",
        "name": displayName(name),
        "peer": "192.0.2.7",
        "direction": "in",
        "protocol": "native",
        "size": 10 << 30,
        "done": 3 << 30,
        "phase": "moving",
        "slowedBy": "peer",
        **given,
    }
    return LiveTransfer(**values)


def ended(number, name, **given):
    values = {
        "when": 1.8e9 + number,
        "name": name,
        "size": 1 << 20,
        "peer": "192.0.2.7",
        "result": "stored",
        "durability": "full",
        "transferId": f"{number:032x}",
        **given,
    }
    return EndedTransfer(**values)


def busy():
    """
    @return: a root service and its sources by kind.
    """
    root = MultiService()
    transfers = [
        transfer(1, "backups/2026-11-22.tar.zst"),
        transfer(2, "größe/数据库.sql", slowedBy="disk", done=9 << 30, peer="fd00::17"),
        transfer(3, "stdin", size=None, done=5 << 20, protocol="classic"),
        transfer(4, "photo.jpg", phase="publishing", slowedBy="disk", done=10 << 30),
    ]
    sources = {
        "transfer": Source(
            "transfer", "inbox", TransferStats(len(transfers), 812, 805, 3, 2, 1 << 40), transfers
        ),
        "listener": Source("listener", "inbox", ListenerStats(5, 1290, 17, 2)),
        "pool": Source(
            "pool",
            "upstream db.example:5432",
            poolStats(
                maxSize=20, size=11, leased=7, idle=3, connecting=1, waiting=2, acquires=90210
            ),
        ),
        "datagram": Source(
            "datagram",
            "echo",
            DatagramStats(
                received=120_000,
                answered=118_990,
                receivedBytes=7_680_000,
                answeredBytes=7_615_360,
                refused={"rate": 1000, "reserved port": 10, "unasked": 0},
                overLimit=0,
                overflowed=3,
                sendErrors={"ENETUNREACH": 4},
            ),
        ),
        "tcp": Source("tcp", "inbox", StateCounts(listen=1, established=5, closeWait=2)),
        "proxy": Source("proxy", "inbox/proxy", ProxyStats(pending=1, headers=44)),
        "probe": Source(
            "probe",
            "far.example:8641",
            ProbeStats(sent=200, received=198, lost=2, up=True, rttMin=0.01, rttMean=0.02),
        ),
    }
    sources["listener"].hosts = [IPv4Address("TCP", "192.0.2.1", 8640)]
    sources["transfer"].recent = [
        ended(3, "reports/2026-11.csv"),
        ended(2, "half.bin", result="failed", durability=None, why="no-space: the disk is full"),
        ended(1, "again.txt", result="duplicate"),
        ended(
            *(4, "../../etc/passwd"),
            result="refused",
            durability=None,
            size=None,
            transferId=None,
            why="name-refused: send a relative name",
        ),
    ]
    for source in sources.values():
        # names are unique among siblings
        holder = MultiService()
        holder.setServiceParent(root)
        source.setServiceParent(holder)
    return root, sources
