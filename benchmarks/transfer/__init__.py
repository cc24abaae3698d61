"""
File transfer beside what is used otherwise: what a user waits for.
"""

from benchmarks.setup import Make
from benchmarks.transfer.bytes import durable, large, small, tls
from benchmarks.transfer.outbox import outbox
from benchmarks.transfer.path import compress, delay, resume
from benchmarks.transfer.s3 import s3Large, s3Small
from benchmarks.transfer.service import connections, crowd, memory
from benchmarks.transfer.startup import startup
from benchmarks.transfer.web import (
    web,
    webDisk,
    webDurable,
    webIdle,
    webMemory,
    webSmall,
    webTLS,
)
from benchmarks.transfer.webagain import webAgain
from benchmarks.transfer.webpage import webFolder, webPage

__all__ = ["PEERS", "S3", "SECTIONS", "SHORT", "WEB"]

#: What C{--install} installs.
PEERS = ("copyparty", "pyftpdlib", "trustme", "xxhash")

#: A new one is a line here, and a function that yields a section.
SECTIONS: dict[str, Make] = {
    "large": large,
    "tls": tls,
    "small": small,
    "durable": durable,
    "outbox": outbox,
    "crowd": crowd,
    "connections": connections,
    "memory": memory,
    "delay": delay,
    "compress": compress,
    "resume": resume,
    "startup": startup,
    "web": web,
    "web-tls": webTLS,
    "web-disk": webDisk,
    "web-small": webSmall,
    "web-durable": webDurable,
    "web-page": webPage,
    "web-folder": webFolder,
    "web-again": webAgain,
    "web-idle": webIdle,
    "web-memory": webMemory,
    "s3": s3Large,
    "s3-small": s3Small,
}

#: Those of HTTP.
WEB = tuple(name for name in SECTIONS if name.startswith("web"))

#: Those of the store on an S3 engine.
S3 = tuple(name for name in SECTIONS if name.startswith("s3"))

#: Those of the short table and the short chart.
SHORT = ("large", "tls", "small", "durable", "startup")
