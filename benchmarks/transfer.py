"""
File transfer side by side on loopback: what a user waits for, from the start of
the sending command to its exit.

    python benchmarks/transfer.py [--rounds 5] [--large 2048] [--small 10000] [--directory DIR]

Pairs: ours by the native protocol (BLAKE3, xxh3) and by the classic one; the Go
tutorial's programs; an rsync daemon; nginx with PUT and curl; pyftpdlib and curl
(a Python with pyftpdlib is named by PYFTPDLIB).  What is not installed is left
out and said.

Everything lies in --directory; a tmpfs takes the disk out of the comparison.  For a
disk, --durability full compares with "rsync --fsync".  Rounds are interleaved; figures are
medians; time/ours is the median of the ratios to ours, BLAKE3, within one round, above 1
where ours is faster.  CPU is of both
sides; memory is the receiver's peak over its idle state.  Every pair is checked: the
content that arrived is compared before the next round.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
sys.path.insert(0, str(CHECKOUT))


def freePort() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def cpuOf(pid: int) -> float:
    """
    Seconds of processor time of a process and its children, ended ones included.
    """
    total = 0.0
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        total += cpuOf(int(child))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return total + sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def peakOf(pid: int) -> int:
    """
    The largest resident size so far, in bytes, of a process and its children.
    """
    total = 0
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        total += peakOf(int(child))
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            total += int(line.split()[1]) * 1024
    return total


class Pair:
    """
    A receiver that is started once, and the command that sends to it.
    """

    small = False

    def __init__(self, name: str, work: Path, full: bool) -> None:
        self.name = name
        self.work = work / name.replace(" ", "-")
        self.root = self.work / "root"
        self.root.mkdir(parents=True)
        self.port = freePort()
        self.full = full
        self.process: subprocess.Popen[bytes] | None = None

    def missing(self) -> str | None:
        return None

    def server(self) -> list[str] | None:
        raise NotImplementedError

    def client(self, source: Path) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        command = self.server()
        if command is None:
            return
        self.process = subprocess.Popen(
            command,
            cwd=self.root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "CONNPOOL_ALLOW_ROOT": "1"},
        )
        end = time.monotonic() + 15
        while time.monotonic() < end:
            try:
                self.probe()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise SystemExit(f"{self.name} does not start")

    def probe(self) -> None:
        socket.create_connection(("127.0.0.1", self.port), 1).close()

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def run(self, source: Path) -> tuple[float, float, int]:
        """
        @return: seconds, seconds of processor time, bytes of memory grown by.
        """
        for entry in self.root.iterdir():
            if entry.name != ".connpool":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        pid = self.process.pid if self.process is not None else None
        if pid is not None:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        cpu, peak = (cpuOf(pid), peakOf(pid)) if pid is not None else (0.0, 0)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(
            self.client(source),
            check=False,
            capture_output=True,
            timeout=600,
            env={
                **os.environ,
                "PYTHONPATH": str(CHECKOUT),
                "XDG_STATE_HOME": str(self.work / "state"),
                "RSYNC_PASSWORD": "x",
            },
        )
        seconds = time.perf_counter() - began
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        grown = 0
        if pid is not None:
            spent += cpuOf(pid) - cpu
            grown = peakOf(pid) - peak
        if done.returncode not in self.fine():
            raise SystemExit(f"{self.name}: {done.returncode}: {done.stderr.decode()}")
        self.check(source)
        return seconds, spent, grown

    def fine(self) -> tuple[int, ...]:
        return (0,)

    def check(self, source: Path) -> None:
        end = time.monotonic() + 10
        target = self.root / source.name
        while True:
            filecmp.clear_cache()
            if source.is_dir():
                names = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
                _, wrong, errors = filecmp.cmpfiles(source, target, names, shallow=False)
                if not wrong and not errors:
                    return
            elif target.exists() and filecmp.cmp(source, target, shallow=False):
                return
            if time.monotonic() > end:
                there = target.stat().st_size if target.exists() else "nothing"
                raise SystemExit(f"{self.name}: what arrived is not what was sent: {there}")
            time.sleep(0.05)


class Ours(Pair):
    small = True

    def __init__(self, name: str, work: Path, full: bool, *options: str) -> None:
        super().__init__(name, work, full)
        self.options = options

    def server(self) -> list[str]:
        return [
            *(sys.executable, "-c", "from twisted.scripts.twistd import run; run()"),
            *("-n", "--pidfile=", "filerecv", "--directory", str(self.root)),
            *("--listen", f"tcp:{self.port}:interface=127.0.0.1"),
            *("--digests", "xxh3,blake3,sha256"),
        ]

    def client(self, source: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "connpool", "send", "--to", f"127.0.0.1:{self.port}"),
            *("--durability", "full" if self.full else "none"),
            *self.options,
            str(source),
        ]


class Classic(Ours):
    small = False

    def client(self, source: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "connpool", "send", "--to", f"127.0.0.1:{self.port}"),
            *("--protocol", "classic", str(source)),
        ]

    def fine(self) -> tuple[int, ...]:
        return (9,)


class Rsync(Pair):
    small = True

    def missing(self) -> str | None:
        return None if shutil.which("rsync") else "rsync is not installed"

    def server(self) -> list[str]:
        config = self.work / "rsyncd.conf"
        config.write_text(
            f"port = {self.port}\naddress = 127.0.0.1\nuse chroot = no\nuid = {os.getuid()}\n"
            f"gid = {os.getgid()}\n[in]\npath = {self.root}\nread only = no\n"
        )
        return ["rsync", "--daemon", "--no-detach", "--config", str(config)]

    def client(self, source: Path) -> list[str]:
        fsync = ["--fsync"] if self.full else []
        return ["rsync", "-rW", *fsync, str(source), f"rsync://127.0.0.1:{self.port}/in/"]


class Nginx(Pair):
    def missing(self) -> str | None:
        return None if shutil.which("nginx") and shutil.which("curl") else "no nginx or no curl"

    def server(self) -> list[str]:
        config = self.work / "nginx.conf"
        config.write_text(
            f"daemon off; worker_processes 1; pid {self.work}/pid; error_log {self.work}/log;\n"
            f"{'user root;' if os.getuid() == 0 else ''}\n"
            "events {} http { access_log off; client_max_body_size 0;\n"
            f"client_body_temp_path {self.root}/.connpool;\n"
            "client_body_buffer_size 1m;\n"
            f"server {{ listen 127.0.0.1:{self.port}; root {self.root};\n"
            "location / { dav_methods PUT; create_full_put_path on; } } }\n"
        )
        return ["nginx", "-p", str(self.work), "-c", str(config)]

    def client(self, source: Path) -> list[str]:
        url = f"http://127.0.0.1:{self.port}/{source.name}"
        return ["curl", "-sSf", "-H", "Expect:", "-T", str(source), url]


class Ftp(Pair):
    def missing(self) -> str | None:
        if not os.environ.get("PYFTPDLIB"):
            return "PYFTPDLIB does not name a Python with pyftpdlib"
        return None if shutil.which("curl") else "curl is not installed"

    def server(self) -> list[str]:
        command = [os.environ["PYFTPDLIB"], "-m", "pyftpdlib", "-w", "-i", "127.0.0.1"]
        return [*command, "-p", str(self.port), "-d", str(self.root)]

    def client(self, source: Path) -> list[str]:
        return ["curl", "-sSf", "-T", str(source), f"ftp://127.0.0.1:{self.port}/"]


class Go(Pair):
    """
    Its receiver takes one connection: it is started for each file.
    """

    def missing(self) -> str | None:
        return None if shutil.which("go") else "go is not installed"

    def server(self) -> None:
        from tests.helpers.gopeers import goProgram

        self.receiver, self.sender = goProgram("receiver"), goProgram("sender")

    def run(self, source: Path) -> tuple[float, float, int]:
        for entry in self.root.iterdir():
            entry.unlink()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.process = subprocess.Popen(
            [self.receiver, f"127.0.0.1:{self.port}"], cwd=self.root, stdout=subprocess.DEVNULL
        )
        time.sleep(0.2)
        began = time.perf_counter()
        subprocess.run(
            [self.sender, f"127.0.0.1:{self.port}", str(source)],
            check=True,
            capture_output=True,
            timeout=600,
        )
        self.process.wait(60)
        seconds = time.perf_counter() - began
        self.process = None
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.check(source)
        spent = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        return seconds, spent, 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def pairs(work: Path, full: bool) -> list[Pair]:
    every = [
        Ours("ours, BLAKE3", work, full),
        Ours("ours, xxh3", work, full, "--digests", "xxh3"),
        Classic("ours, classic", work, full),
        Go("Go tutorial", work, full),
        Rsync("rsync daemon", work, full),
        Nginx("nginx PUT + curl", work, full),
        Ftp("pyftpdlib + curl", work, full),
    ]
    there = []
    for pair in every:
        why = pair.missing()
        if why is None:
            there.append(pair)
        else:
            print(f"left out: {pair.name}: {why}")
    return there


def compare(title: str, there: list[Pair], source: Path, size: int, rounds: int) -> None:
    results: dict[str, list[tuple[float, float, int]]] = {pair.name: [] for pair in there}
    for number in range(rounds + 1):
        for pair in there:
            result = pair.run(source)
            if number:  # the first round warms up
                results[pair.name].append(result)
    print(f"\n{title}: medians of {rounds} interleaved rounds")
    print(f"{'pair':20} {'seconds':>8} {'MB/s':>7} {'CPU s/GB':>9} {'memory':>9} {'time/ours':>10}")
    ours = results[there[0].name]
    for pair in there:
        mine = results[pair.name]
        seconds, cpu, memory = (statistics.median(column) for column in zip(*mine, strict=True))
        ratio = statistics.median(m[0] / o[0] for m, o in zip(mine, ours, strict=True))
        print(
            f"{pair.name:20} {seconds:8.2f} {size / seconds / 1e6:7.0f} {cpu / size * 1e9:9.2f} "
            f"{memory / (1 << 20):5.1f} MiB {ratio:9.2f}x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, default=2048, help="MiB of the large file, 0: none")
    parser.add_argument("--small", type=int, default=10_000, help="files of 4 KiB, 0: none")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--durability", choices=["none", "full"], default="none")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.directory)))
        work.chmod(0o755)
        there = pairs(work, arguments.durability == "full")
        for pair in there:
            stack.callback(pair.stop)
            pair.start()
        if arguments.large:
            large = work / "large.bin"
            block = os.urandom(1 << 20)
            with large.open("wb") as file:
                for _ in range(arguments.large):
                    file.write(block)
            size = arguments.large << 20
            compare(f"one file of {arguments.large} MiB", there, large, size, arguments.rounds)
            large.unlink()
        if arguments.small:
            tree = work / "tree"
            for number in range(arguments.small):
                path = tree / f"{number % 100}" / f"{number}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(os.urandom(4096))
            some = [pair for pair in there if pair.small]
            size = arguments.small * 4096
            compare(f"{arguments.small} files of 4 KiB", some, tree, size, arguments.rounds)


if __name__ == "__main__":
    main()
