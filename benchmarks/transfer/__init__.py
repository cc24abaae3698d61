"""
File transfer beside what is used otherwise: what a user waits for.
"""

from contextlib import AbstractContextManager

from benchmarks.processes import Failed
from benchmarks.section import Section
from benchmarks.setup import Make, Setup
from benchmarks.transfer.bytes import command, durable, large, small, tls
from benchmarks.transfer.outbox import outbox
from benchmarks.transfer.path import compress, delay, resume
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
PEERS = ("botocore", "copyparty", "h11", "pyftpdlib", "trustme", "xxhash")


def _onEngine(name: str) -> Make:
    """
    Return a section that needs the extra C{s3}, for those who do not have that, too.
    """

    def make(setup: Setup) -> AbstractContextManager[Section]:
        try:
            from benchmarks.transfer import s3
        except ModuleNotFoundError as e:
            raise Failed(f"{e.name} is not installed; see the extra s3") from None
        return getattr(s3, name)(setup)

    return make


#: A new one is a line here, and a function that yields a section.
SECTIONS: dict[str, Make] = {
    "large": large,
    "command": command,
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
    "s3": _onEngine("s3Large"),
    "s3-small": _onEngine("s3Small"),
    "s3-memory": _onEngine("s3Memory"),
    "s3-again": _onEngine("s3Again"),
}

#: Those of HTTP.
WEB = tuple(name for name in SECTIONS if name.startswith("web"))

#: Those of the store on an S3 engine.
S3 = tuple(name for name in SECTIONS if name.startswith("s3"))

#: Those of the short table and the short chart.
SHORT = ("large", "command", "tls", "small", "durable", "startup")
