"""
Our receiver and our ways of sending.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from benchmarks.transfer.tools import Certified, Place, Tool

__all__ = ["Classic", "Ours", "OursTLS", "sendCommand", "serviceCommand"]


def serviceCommand(name: str, *options: Any) -> list[Any]:
    """
    Return the command of a service of ours.
    """
    twistd = "from twisted.scripts.twistd import run; run()"
    return [sys.executable, "-c", twistd, "-n", "--pidfile=", name, *options]


def sendCommand(to: str, *words: Any) -> list[Any]:
    """
    Return the command that sends.
    """
    return [sys.executable, "-m", "connpool", "send", "--to", to, *words]


class Ours(Tool):
    """
    C{connpool send} to C{twistd filerecv}, native.

    @param options: of the sender.
    """

    def __init__(self, name: str, place: Place, *options: str) -> None:
        super().__init__(name, place)
        self.options = options

    def missing(self) -> str | None:
        if "xxh3" in self.options and importlib.util.find_spec("xxhash") is None:
            return "the package xxhash is not installed"
        return super().missing()

    def listen(self) -> str:
        return f"tcp:{self.port}:interface=127.0.0.1"

    def server(self) -> list[Any]:
        digests = "xxh3,blake3,sha256" if "xxh3" in self.options else "blake3,sha256"
        return serviceCommand(
            *("filerecv", "--directory", self.root, "--listen", self.listen()),
            *("--digests", digests),
        )

    def to(self) -> list[str]:
        return [f"127.0.0.1:{self.port}"]

    def client(self, source: Path) -> list[Any]:
        durability = "full" if self.place.full else "none"
        return sendCommand(*self.to(), "--durability", durability, *self.options, source)

    def variables(self) -> dict[str, str]:
        return {"XDG_STATE_HOME": str(self.work / "state")}


class Classic(Ours):
    """
    The same by the classic protocol, which ends unconfirmed.
    """

    fine = (9,)

    def client(self, source: Path) -> list[Any]:
        return sendCommand(*self.to(), "--protocol", "classic", source)


class OursTLS(Certified, Ours):
    """
    Native within TLS.
    """

    def listen(self) -> str:
        pem = f"certificate={self.work}/server.pem:privateKey={self.work}/server.pem"
        return f"secured:tcp:{self.port}:interface=127.0.0.1:{pem}"

    def to(self) -> list[str]:
        return [f"tls:127.0.0.1:{self.port}", "--ca", f"{self.work}/ca.pem"]
