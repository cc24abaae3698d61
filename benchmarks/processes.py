"""
Programs that are measured from outside: time from start to exit, processor time and
peak memory of a command, and of a service while others use it.  Linux.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs

__all__ = [
    "CHECKOUT",
    "Failed",
    "Running",
    "Spent",
    "cpuOf",
    "endChildren",
    "freePort",
    "residentOf",
    "run",
]

CHECKOUT = Path(__file__).resolve().parent.parent

#: Seconds between two looks at a command's peak memory.
_LOOK_SECONDS = 0.05
_FIRST_LOOK_SECONDS = 0.005  # some take no longer
_START_SECONDS = 20.0
_STOP_SECONDS = 15.0
_NOT_INHERITED = {"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"}
_TICKS = os.sysconf("SC_CLK_TCK")
#: With a process id: its clock, as clock_getcpuclockid(3) makes it.
_SCHEDULED = 2


class Failed(Exception):
    """
    A program did not do what it was started for.
    """


def freePort() -> int:
    """
    Return a port of 127.0.0.1 that nobody listens on.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def listens(port: int) -> bool:
    """
    Tell whether somebody listens on a port, without connecting: some serve one only.
    """
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False


def _tree(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        # one that has ended meanwhile has none
        with suppress(OSError):
            for children in Path(f"/proc/{each}/task").glob("*/children"):
                with suppress(OSError):
                    found += map(int, children.read_text().split())
    return found


def endChildren() -> None:
    """
    Ask all that this process started to end, also what is being started.
    """
    for pid in _tree(os.getpid())[1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def cpuOf(pid: int) -> float:
    """
    Return the seconds of processor time of a process and its children: by the clock of
    each, and in the kernel's ticks those of children that have ended.
    """
    total = 0.0
    for each in _tree(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += time.clock_gettime((~each << 3) | _SCHEDULED)
        except OSError:
            continue
        total += sum(map(int, fields[13:15])) / _TICKS
    return total


def residentOf(pid: int, which: str = "VmHWM") -> int:
    """
    Return the bytes that a process and its children have in memory: C{"VmRSS"} now,
    C{"VmHWM"} at most so far.
    """
    total = 0
    for each in _tree(pid):
        try:
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))
    return total


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """
    Return the environment of programs of ours: of this checkout, installed or not, and
    compiled once, as it is where it was installed.
    """
    return {
        **{name: value for name, value in os.environ.items() if name not in _NOT_INHERITED},
        "PYTHONPATH": str(CHECKOUT),
        "CONNPOOL_ALLOW_ROOT": "1",
        **(extra or {}),
    }


@attrs.frozen
class Spent:
    """
    @ivar seconds: from start to exit.
    @ivar cpu: seconds of processor time, those of children included.
    @ivar peak: bytes in memory at most, seen every 50 ms.
    """

    seconds: float
    cpu: float
    peak: int


class Running:
    """
    A program that was started.

    @param port: where it will listen; it is waited for.
    @ivar process: of the program.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.command = [str(word) for word in command]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it has ended
        self._began = time.perf_counter()
        self.process = subprocess.Popen(
            self.command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment(env),
            start_new_session=True,
        )
        self._peak = 0
        if port is not None:
            try:
                self._listens(port)
            except BaseException:
                self.stop()
                raise

    def _listens(self, port: int) -> None:
        end = time.monotonic() + _START_SECONDS
        while not listens(port):
            if self.process.poll() is not None or time.monotonic() > end:
                raise Failed(f"{self.command[0]} does not listen: {self._text()}")
            time.sleep(0.005)

    @property
    def pid(self) -> int:
        return self.process.pid

    def look(self) -> None:
        """
        Note how much memory it has had; gone once it has ended.
        """
        self._peak = max(self._peak, residentOf(self.pid))

    def ended(
        self,
        timeout: float = 900.0,
        fine: Sequence[int] = (0,),
        beside: Sequence[Running] = (),
    ) -> Spent:
        """
        Wait until it has ended.

        @param fine: exit codes that mean it has done its work.
        @param beside: others that are looked at meanwhile.
        @raise Failed: it has not.
        """
        poll = select.poll()
        descriptor = os.pidfd_open(self.pid)
        try:
            poll.register(descriptor, select.POLLIN)
            end = self._began + timeout
            wait = _FIRST_LOOK_SECONDS
            while not poll.poll(wait * 1000):
                wait = _LOOK_SECONDS
                for each in (self, *beside):
                    each.look()
                if time.perf_counter() > end:
                    raise Failed(f"{self.command[0]} takes over {timeout:.0f} s")
            seconds = time.perf_counter() - self._began
        except BaseException:
            self.stop()
            raise
        finally:
            os.close(descriptor)
        _, status, used = os.wait4(self.pid, 0)
        code = self.process.returncode = os.waitstatus_to_exitcode(status)
        text = self._text()
        self._output.close()
        if code not in fine:
            raise Failed(f"{' '.join(self.command)}: exit code {code}: {text}")
        return Spent(seconds, used.ru_utime + used.ru_stime, self._peak)

    def stop(self) -> None:
        """
        End it and whatever it started.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                os.killpg(self.pid, number)
                try:
                    self.process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        self._output.close()

    def _text(self) -> str:
        self._output.seek(0)
        return self._output.read()[-2000:].decode(errors="replace")


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    fine: Sequence[int] = (0,),
    timeout: float = 900.0,
    beside: Sequence[Running] = (),
) -> Spent:
    """
    Run a command to its end.
    """
    return Running(command, cwd=cwd, env=env).ended(timeout, fine, beside)
