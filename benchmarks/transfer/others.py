"""
What is used to send files otherwise.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.processes import CHECKOUT
from benchmarks.transfer.tools import Certified, OneShot, Place, Tool

__all__ = [
    "Ftp",
    "GoCopy",
    "GoTutorial",
    "Nginx",
    "NginxTLS",
    "RawSockets",
    "Rsync",
    "Scp",
    "Sftp",
    "Socat",
    "TarNetcat",
]

PEERS = CHECKOUT / "benchmarks" / "peers"


class RawSockets(OneShot):
    """
    The limit of what Python does: 1 MiB C{recv_into} and C{write}, blocking.

    @param digest: computed of each piece at both ends, without anything that needs it.
    """

    def __init__(self, name: str, place: Place, *digest: str) -> None:
        super().__init__(name, place)
        self.digest = digest

    def _command(self, *words: Any) -> list[Any]:
        # without site packages where none is needed
        isolated = "-I" if self.digest else "-IS"
        return [sys.executable, isolated, PEERS / "rawsockets.py", *words, *self.digest]

    def receive(self, source: Path) -> list[Any]:
        return self._command("receive", self.port, source.name)

    def client(self, source: Path) -> list[Any]:
        return self._command("send", self.port, source)


class GoTutorial(OneShot):
    """
    The programs of the tutorial: a buffer of 4 KiB.
    """

    needs = ("go",)
    programs = (CHECKOUT / "tests/peers/receiver.go", CHECKOUT / "tests/peers/sender.go")

    def prepare(self) -> None:
        self.receiving, self.sending = map(self._built, self.programs)

    def _built(self, source: Path) -> Path:
        target = self.work / source.stem
        subprocess.run(
            ["go", "build", "-o", target, source],
            check=True,
            timeout=300,
            env={**os.environ, "GO111MODULE": "off", "CGO_ENABLED": "0"},
        )
        return target

    def receive(self, source: Path) -> list[Any]:
        return [self.receiving, f"127.0.0.1:{self.port}"]

    def client(self, source: Path) -> list[Any]:
        return [self.sending, f"127.0.0.1:{self.port}", source]


class GoCopy(GoTutorial):
    """
    C{io.Copy}: the kernel's sendfile and splice.
    """

    programs = (PEERS / "filecopy.go", PEERS / "filecopy.go")

    def receive(self, source: Path) -> list[Any]:
        return [self.receiving, "receive", f"127.0.0.1:{self.port}", source.name]

    def client(self, source: Path) -> list[Any]:
        return [self.sending, "send", f"127.0.0.1:{self.port}", source]


class Rsync(Tool):
    """
    To its daemon, whole files, times kept; C{--fsync} where ours is asked for full.
    """

    needs = ("rsync",)

    def server(self) -> list[Any]:
        config = self.work / "rsyncd.conf"
        config.write_text(
            f"port = {self.port}\naddress = 127.0.0.1\nuse chroot = no\nuid = {os.getuid()}\n"
            f"gid = {os.getgid()}\n[in]\npath = {self.root}\nread only = no\n"
        )
        return ["rsync", "--daemon", "--no-detach", "--config", config]

    def client(self, source: Path) -> list[Any]:
        fsync = ["--fsync"] if self.place.full else []
        return ["rsync", "-rtW", *fsync, source, f"rsync://127.0.0.1:{self.port}/in/"]


class Nginx(Tool):
    """
    nginx, to which curl PUTs.
    """

    needs = ("nginx", "curl")
    scheme = "http"
    listen = ""

    def server(self) -> list[Any]:
        config = self.work / "nginx.conf"
        config.write_text(
            f"daemon off; worker_processes 1; pid {self.work}/pid; error_log {self.work}/log;\n"
            f"{'user root;' if os.getuid() == 0 else ''}\n"
            "events {} http { access_log off; client_max_body_size 0;\n"
            f"client_body_temp_path {self.work}/body; client_body_buffer_size 1m;\n"
            f"server {{ listen 127.0.0.1:{self.port} {self.listen}; root {self.root};\n"
            "location / { dav_methods PUT; create_full_put_path on; } } }\n"
        )
        return ["nginx", "-p", self.work, "-c", config]

    def client(self, source: Path) -> list[Any]:
        url = f"{self.scheme}://127.0.0.1:{self.port}/{source.name}"
        return ["curl", "-sSf", "-H", "Expect:", *self.trust(), "-T", source, url]

    def trust(self) -> list[Any]:
        return []


class NginxTLS(Certified, Nginx):
    """
    The same within TLS 1.3.
    """

    scheme = "https"

    def prepare(self) -> None:
        super().prepare()
        pem = f"{self.work}/server.pem"
        self.listen = (
            f"ssl; ssl_protocols TLSv1.3; ssl_certificate {pem}; ssl_certificate_key {pem}"
        )

    def trust(self) -> list[Any]:
        return ["--cacert", self.work / "ca.pem"]


class Ftp(Tool):
    """
    pyftpdlib, to which curl uploads.

    @cvar python: that has it.
    """

    needs = ("curl",)
    python: str | Path = sys.executable

    def missing(self) -> str | None:
        done = subprocess.run(
            [self.python, "-c", "import pyftpdlib"], check=False, capture_output=True
        )
        if done.returncode:
            return "the package pyftpdlib is not installed (--install installs it)"
        return super().missing()

    def server(self) -> list[Any]:
        command = [self.python, "-m", "pyftpdlib", "-w", "-i", "127.0.0.1"]
        return [*command, "-p", self.port, "-d", self.root]

    def client(self, source: Path) -> list[Any]:
        return ["curl", "-sSf", "-T", source, f"ftp://127.0.0.1:{self.port}/"]


class Socat(OneShot):
    """
    socat at both ends, with buffers of 1 MiB.
    """

    needs = ("socat",)

    def receive(self, source: Path) -> list[Any]:
        listen = f"TCP-LISTEN:{self.port},bind=127.0.0.1"
        return ["socat", "-u", "-b", 1 << 20, listen, f"OPEN:{source.name},creat,trunc"]

    def client(self, source: Path) -> list[Any]:
        return ["socat", "-u", "-b", 1 << 20, f"OPEN:{source}", f"TCP:127.0.0.1:{self.port}"]


class TarNetcat(OneShot):
    """
    C{tar | nc} to C{nc | tar}.
    """

    needs = ("tar", "nc")

    def receive(self, source: Path) -> list[Any]:
        return ["sh", "-c", f"nc -l 127.0.0.1 {self.port} </dev/null | tar xf -"]

    def client(self, source: Path) -> list[Any]:
        where, name = shlex.quote(str(source.parent)), shlex.quote(source.name)
        return ["sh", "-c", f"tar cf - -C {where} {name} | nc -N 127.0.0.1 {self.port}"]


class Scp(Tool):
    """
    C{scp -O} (the old protocol) to an C{sshd} on loopback.
    """

    needs = ("sshd", "ssh-keygen", "scp", "sftp")

    def prepare(self) -> None:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # as its unit does
        for name in ("host", "user"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.work / name]
            subprocess.run(key, check=True, timeout=30)
        shutil.copy(self.work / "user.pub", self.work / "authorized")
        self.config = self.work / "sshd_config"
        self.config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.work}/host\n"
            f"AuthorizedKeysFile {self.work}/authorized\nStrictModes no\nUsePAM no\n"
            f"PidFile none\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
        )

    def server(self) -> list[Any]:
        path = shutil.which("sshd", path=f"{os.environ.get('PATH')}:/usr/sbin")
        return [path, "-D", "-e", "-f", self.config]

    def options(self) -> list[Any]:
        words = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes")
        each = [word for option in (*words, "LogLevel=ERROR") for word in ("-o", option)]
        return ["-F", "none", "-i", self.work / "user", "-P", self.port, *each]

    def client(self, source: Path) -> list[Any]:
        return ["scp", "-O", "-q", "-r", *self.options(), source, f"127.0.0.1:{self.root}/"]


class Sftp(Scp):
    """
    C{sftp}, which asks for every file.
    """

    def client(self, source: Path) -> list[Any]:
        batch = self.work / "batch"
        batch.write_text(f"put -r {source} {self.root}/{source.name}\n")
        return ["sftp", "-q", *self.options(), "-b", batch, "127.0.0.1"]
