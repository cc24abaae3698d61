"""
Contestants whose files come by HTTP, from curl.
"""

from __future__ import annotations

import base64
import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import fileSystemOf
from benchmarks.processes import Running, Spent, run
from benchmarks.setup import ENVIRONMENTS
from benchmarks.transfer.others import PEERS, Nginx
from benchmarks.transfer.ours import Ours, OursTLS
from benchmarks.transfer.tools import Place, Tool

__all__ = [
    "Copyparty",
    "FsyncLoop",
    "NginxTree",
    "Put",
    "PutTLS",
    "Tus",
    "TusServer",
    "installNode",
    "installTus",
    "patched",
    "tusFields",
]

_NODE = ENVIRONMENTS / "npm-tus"
_CURL = ("curl", "-sSf", "-H", "Expect:")


def installTus() -> None:
    """
    Install @tus/server, unless it is there or npm is not.
    """
    installNode(_NODE, "@tus/server@2", "@tus/file-store@2")


def installNode(where: Path, *packages: str) -> None:
    """
    Install packages below a directory, unless they are there or npm is not.
    """
    if shutil.which("npm") and not (where / "node_modules").exists():
        where.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", where]
        subprocess.run([*npm, *packages], check=True, timeout=300)


def tusFields(source: Path, name: str) -> list[str]:
    """
    Return the fields that create a tus upload.
    """
    coded = base64.b64encode(name.encode()).decode()
    return [
        "Tus-Resumable: 1.0.0",
        f"Upload-Length: {source.stat().st_size}",
        f"Upload-Metadata: filename {coded}",
    ]


def putTree(source: Path, base: str, config: Path) -> list[Any]:
    """
    Write a configuration of curl that PUTs each file of a tree.

    @return: the words of curl that read it.
    """
    lines = [
        f'upload-file = "{path}"\nurl = "{base}/{path.relative_to(source.parent)}"\n'
        for path in sorted(source.rglob("*"))
        if path.is_file()
    ]
    config.write_text("".join(lines))
    return ["--fail-early", "-K", config]


def patched(url: str, source: Path, *fields: str) -> list[Any]:
    """
    Return the command that creates a tus upload, and sends all of it in one PATCH.
    """
    curl = shlex.join([*_CURL, "-H", "Tus-Resumable: 1.0.0"])
    headers = [
        word for field in (*tusFields(source, source.name)[1:], *fields) for word in ("-H", field)
    ]
    create = shlex.join(["-X", "POST", "-o", "/dev/null", "-w", "%header{location}", *headers, url])
    kind = shlex.quote("Content-Type: application/offset+octet-stream")
    script = (
        f'set -e; at=$({curl} {create}); case "$at" in http*) ;; *) at={url}$at ;; esac; '
        f"exec {curl} -X PATCH -H 'Upload-Offset: 0' -H {kind} -T {shlex.quote(str(source))} $at"
    )
    return ["sh", "-c", script]


class Put(Ours):
    """
    curl that PUTs to C{twistd filerecv}: a file, or a tree over one or more connections.

    @param options: of the receiver.
    @param connections: of curl, for a tree.
    """

    needs = ("curl",)
    scheme = "http"

    def __init__(self, name: str, place: Place, *options: str, connections: int = 1) -> None:
        super().__init__(name, place, *options)
        self.connections = connections

    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def server(self) -> list[Any]:
        return [*super().server(), *self.options]

    def client(self, source: Path) -> list[Any]:
        prefer = f"Prefer: durability={'full' if self.place.full else 'none'}"
        words = [*_CURL, "-H", prefer, *self.trust()]
        if source.is_dir():
            parallel = ["-Z", "--parallel-immediate", "--parallel-max", self.connections]
            tree = putTree(source, self.url(), self.work / "curl.conf")
            return [*words, *(parallel if self.connections > 1 else []), *tree]
        return [*words, "-T", source, f"{self.url()}/{source.name}"]

    def trust(self) -> list[Any]:
        return []


class PutTLS(Put, OursTLS):
    """
    The same within TLS 1.3.
    """

    scheme = "https"

    def trust(self) -> list[Any]:
        return ["--cacert", self.work / "ca.pem"]


class Tus(Put):
    """
    curl that speaks tus: an upload, and one PATCH.
    """

    def client(self, source: Path) -> list[Any]:
        return patched(f"{self.url()}/", source, "Prefer: durability=none")


class NginxTree(Nginx):
    """
    nginx, to which one curl PUTs a tree over one connection.
    """

    def client(self, source: Path) -> list[Any]:
        url = f"http://127.0.0.1:{self.port}"
        return [*_CURL, *putTree(source, url, self.work / "curl.conf")]


class TusServer(Tool):
    """
    @tus/server, to which curl speaks tus: an upload, and one PATCH.
    """

    needs = ("node", "curl")

    def missing(self) -> str | None:
        if not (_NODE / "node_modules" / "@tus").exists():
            return "the npm package @tus/server is not installed (--install installs it)"
        return super().missing()

    def prepare(self) -> None:
        shutil.copy(PEERS / "tusserver.mjs", self.work)
        (self.work / "node_modules").symlink_to(_NODE / "node_modules")

    def server(self) -> list[Any]:
        return ["node", self.work / "tusserver.mjs", self.port, self.root]

    def client(self, source: Path) -> list[Any]:
        return patched(f"http://127.0.0.1:{self.port}/", source)


class Copyparty(Tool):
    """
    copyparty, to which curl PUTs; not on a tmpfs, which it refuses.
    """

    needs = ("curl",)

    def missing(self) -> str | None:
        if importlib.util.find_spec("copyparty") is None:
            return "the package copyparty is not installed (--install installs it)"
        if fileSystemOf(self.place.work) in {"tmpfs", "ramfs"}:
            return "copyparty takes no directory in memory: --disk names one on a disk"
        return super().missing()

    def server(self) -> list[Any]:
        where = ["-i", "127.0.0.1", "-p", self.port, "-v", f"{self.root}::rw"]
        return [sys.executable, "-m", "copyparty", "-q", *where]

    def client(self, source: Path) -> list[Any]:
        return [*_CURL, "-T", source, f"http://127.0.0.1:{self.port}/{source.name}"]


class FsyncLoop(Tool):
    """
    A program that writes, syncs and renames file after file, without a network.
    """

    def start(self) -> Running | None:
        return None

    def client(self, source: Path) -> list[Any]:
        return [sys.executable, "-IS", PEERS / "fsyncloop.py", source, self.root / source.name]

    def send(self, path: Path) -> tuple[Spent, Spent]:
        return run(self.client(path)), Spent(0.0, 0.0, 0)
