"""
C{twistd udpecho} and C{connpool ping} as an operator runs them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.helpers.processes import (
    CHECKOUT,
    CONNPOOL,
    TWIST,
    TWISTD,
    Popen,
    connpool,
    environment,
    fetch,
    finished,
    goes,
    run,
    running,
    twistd,
    within,
)

#: twist logs JSON
ANSWERS = r"(answers on|where\": \")[ ]?[0-9.]+:(\d+)"


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    where = tmp_path_factory.mktemp("udpecho")
    with twistd("udpecho", "--listen", "udp:0:interface=127.0.0.1", cwd=where) as program:
        yield "127.0.0.1:" + program.waitFor(ANSWERS)[2]
        program.stop()


def test_ping(echo):
    result = connpool("ping", echo, "--count", "5", "--interval", "0.02")
    assert result.returncode == 0, result.stderr
    assert "5 sent, 5 received, 0 lost = 0.00 %" in result.stdout


def test_json(echo):
    result = connpool(
        "ping", echo, "--count", "50", "--interval", "0.002", "--size", "1000", "--json"
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["sent"], report["received"], report["lost"]) == (50, 50, 0)
    assert report["size"] == 1000
    rtt = report["rtt"]
    assert 0 < rtt["min"] <= rtt["p50"] <= rtt["p95"] <= rtt["max"] < 1
    assert rtt["p99"] is None


def test_nothingComesBack():
    # the discard port: nobody there
    result = connpool(
        "ping", "127.0.0.1:9", "--count", "2", "--interval", "0.05", "--timeout", "0.2"
    )
    assert result.returncode == 1
    assert "0 received, 2 lost = 100.00 %" in result.stdout
    assert "ECONNREFUSED 2" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["127.0.0.1"], 2, "has no port"),
        (["no..such-host:8641"], 7, "lookup no..such-host: no such host"),
        (["127.0.0.1:8641", "--size", "4"], 2, "12 to 65507 bytes"),
        (["127.0.0.1:8641", "--size", "65508"], 2, "12 to 65507 bytes"),
        (["127.0.0.1:8641", "--interval", "0"], 2, "invalid number of seconds value: '0'"),
        (["127.0.0.1:8641", "--count=-1"], 2, "invalid count value: '-1'"),
    ],
)
def test_mistakes(arguments, code, says):
    result = connpool("ping", *arguments)
    assert result.returncode == code
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_mistakesInOptions():
    from twisted.python.usage import UsageError

    from connpool.services.udpecho import Options

    for arguments, says in (
        (["--listen", "udp:8641:::1"], "one port and key=value parts only"),
        (["--listen", "udp:port"], "the port must be a number"),
        (["--listen", "udp:8641:reusePort=maybe"], "reusePort is yes or no"),
        (["--listen", "secured:udp:8641"], "there is no TLS over UDP"),
        (["--protocol", "chargen"], "'chargen' is no datagram protocol"),
        (["--protocol", "echo:loud"], "echo: takes no arguments"),
        (["--protocol", "stamp:key=secret"], "stamp: takes key-file=PATH:stateful=yes, not 'key'"),
        (["--protocol", "stamp:stateful=perhaps"], "stateful is yes or no"),
        (["--protocol", "irtt:key-file=/nonexistent"], "key-file=/nonexistent: No such file"),
        (["--relax", "everything"], "'everything' is not one of"),
        (["--trust", "here"], "is not a network"),
        (["--rate", "0"], "--rate: '0' is not a count"),
    ):
        with pytest.raises(UsageError, match=re.escape(says)) as caught:
            Options().parseOptions(arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--protocol", "chargen"], "'chargen' is no datagram protocol"),
        (["--listen", "udp:0:interface=localhost"], "'localhost' is not an address"),
        (["--listen", "udp:0:interface=192.0.2.1"], "this machine has no such address"),
        (["--listen", "udp:systemd:name=echo"], "systemd passed no such socket"),
    ],
)
def test_aMistakeIsOneLine(tmp_path, arguments, says):
    result = finished(*TWISTD, "-n", "--pidfile=", "udpecho", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    output = result.stdout + result.stderr
    (line,) = [line for line in output.splitlines() if "udpecho: " in line]
    assert says in line
    assert "Traceback" not in output


def test_portInUse(tmp_path, echo):
    listen = f"udp:{echo.partition(':')[2]}:interface=127.0.0.1"
    for command in (
        [*TWISTD, "-n", "--pidfile="],
        [*TWISTD, "--logfile=log"],
        TWIST,
    ):
        result = finished(*command, "udpecho", "--listen", listen, cwd=tmp_path)
        assert result.returncode == 1, command
        output = result.stdout + result.stderr
        # a daemonizing twistd hands on the first hundred bytes only
        assert "Address alre" in output, command
        assert "Traceback" not in output
        assert goes(tmp_path / "twistd.pid")


def test_twist(tmp_path):
    with running(
        *TWIST, "udpecho", "--listen", "udp:0:interface=127.0.0.1", cwd=tmp_path
    ) as program:
        port = program.waitFor(ANSWERS)[2]
        assert connpool("ping", f"127.0.0.1:{port}", "--count", "1").returncode == 0


def test_bothFamiliesOnOnePort(tmp_path):
    with twistd("udpecho", "--listen", "udp:0", cwd=tmp_path) as program:
        port = program.waitFor(ANSWERS)[2]
        assert connpool("ping", f"127.0.0.1:{port}", "--count", "1").returncode == 0
        assert connpool("ping", f"[::1]:{port}", "--count", "1").returncode == 0


@pytest.mark.parametrize("protocol", ["auto", "irtt", "stamp:key-file=key"])
def test_theCommandInTheLogWorks(tmp_path, protocol):
    """
    Also for every address, which nothing can be sent to.
    """
    (tmp_path / "key").write_text("sesame")
    with twistd("udpecho", "--listen", "udp:0", "--protocol", protocol, cwd=tmp_path) as program:
        program.waitFor(r"answers on \[::\]")

        def hints():
            return re.findall(r"; try: connpool (ping .*)\n", program.output)

        assert within(lambda: len(hints()) == 2), program.output
        for hint in hints():
            result = finished(*CONNPOOL, *shlex.split(hint), "--count", "1", cwd=tmp_path)
            assert result.returncode == 0, hint + result.stdout + result.stderr


@pytest.mark.parametrize("protocol", ["irtt", "tcp"])
def test_pingSpeaksOtherProtocols(tmp_path, protocol):
    listens = ["--listen", "udp:0:interface=127.0.0.1", "--listen", "tcp:0:interface=127.0.0.1"]
    with twistd("udpecho", *listens, cwd=tmp_path) as program:
        port = program.waitFor(ANSWERS if protocol == "irtt" else r"starting on (\d+)").groups()[-1]
        picture = tmp_path / "path.svg"
        result = connpool(
            "ping", f"127.0.0.1:{port}", "--protocol", protocol, "--count", "5",
            "--interval", "0.01", "--plot", picture,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert f"{protocol}, 64 bytes: 5 sent, 5 received" in result.stdout
        assert picture.read_text().startswith("<svg")


def test_ctrlCEndsItWithAReport(tmp_path, echo):
    with running(
        *CONNPOOL, "ping", echo, "--count", "0", "--interval", "0.1",
        cwd=tmp_path,
    ) as program:  # fmt: skip
        program.waitFor("#2 ")
        program.process.send_signal(signal.SIGINT)
        program.waitFor(r"\d+ sent, \d+ received, [01] lost")
        assert program.process.wait(20) == 0
        assert "Traceback" not in program.output


def test_nobodyReadsOn(echo):
    with Popen(
        [*CONNPOOL, "ping", echo, "--count", "0", "--interval", "0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True,
    ) as process:  # fmt: skip
        try:
            process.stdout.readline()
            process.stdout.close()
            assert process.wait(20) == 1
            assert process.stderr.read() == ""
        finally:
            process.kill()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("json_", [[], ["--json"]])
def test_theReportCannotBeWritten(echo, json_):
    with open("/dev/full", "w") as full:
        result = run([*CONNPOOL, "ping", echo, "--count", "1", *json_], stdout=full, text=True)
    assert result.returncode == 1
    assert result.stderr == "connpool ping: cannot write the report: No space left on device\n"


def test_pingSweeps(echo):
    result = connpool("ping", echo, "--sweep")
    assert result.returncode == 0, result.stderr
    assert "65507 bytes of payload get there, path MTU at least 65535" in result.stdout


def test_theDefaultIsLoopback(tmp_path):
    from connpool.services.udpecho import Options

    options = Options()
    options.parseOptions([])
    (listen,) = options["listen"]
    assert (listen.local, listen.arguments) == (True, ("8641",))


def test_protocolsAreListed(tmp_path):
    """
    Ours, and one that somebody else's plugin brings.
    """
    plugins = tmp_path / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (tmp_path / "shouting.py").write_text(SHOUTING)
    (plugins / "shouting_plugin.py").write_text("from shouting import factory\n")
    path = f"{CHECKOUT}:{tmp_path}"
    command = [*TWISTD, "-n", "--pidfile=", "udpecho", "--protocols"]
    result = finished(*command, cwd=tmp_path, PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names == ["auto", "echo", "irtt", "stamp", "shout"]
    listen = ["--listen", "udp:0:interface=127.0.0.1"]
    with (
        twistd(
            "udpecho", *listen, "--protocol", "shout:!", cwd=tmp_path, PYTHONPATH=path
        ) as program,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.settimeout(10)
        sock.sendto(b"hello?", ("127.0.0.1", int(program.waitFor(ANSWERS)[2])))
        assert sock.recv(100) == b"HELLO!"


SHOUTING = """
from collections import Counter
from twisted.plugin import IPlugin
from zope.interface import implementer
from connpool.interfaces import IDatagramResponder, IDatagramResponderFactory

@implementer(IDatagramResponder)
class Shouting:
    wants = frozenset()
    excess = 0
    def __init__(self, mark):
        self.mark = mark.encode()
        self.refused = Counter()
    def respond(self, data, info):
        return data[:-1].upper() + self.mark

@implementer(IPlugin, IDatagramResponderFactory)
class Factory:
    name = "shout"
    description = "louder"
    def make(self, arguments):
        return Shouting(arguments)

factory = Factory()
"""


def test_stopsInAFlood(tmp_path):
    with (
        twistd("udpecho", "--listen", "udp:0:interface=127.0.0.1", cwd=tmp_path) as program,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.connect(("127.0.0.1", int(program.waitFor(ANSWERS)[2])))
        sock.settimeout(20)
        sock.send(b"has the reactor begun?")
        sock.recv(100)
        sock.setblocking(False)
        program.process.terminate()
        end = time.monotonic() + 20
        while program.process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError):
                sock.send(b"")
        # twistd ends itself with the signal it got, after a clean shutdown
        assert program.process.poll() in {0, -15}
        program.waitFor("Server Shut Down")


def test_whatWasRefusedIsSummarised(tmp_path):
    with (
        twistd("udpecho", "--listen", "udp:0:interface=127.0.0.1", "--log-interval", "0.3",
               "--deny", "127.0.0.1", cwd=tmp_path) as program,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):  # fmt: skip
        sock.connect(("127.0.0.1", int(program.waitFor(ANSWERS)[2])))
        for _ in range(20):
            sock.send(b"x")

        def denied():
            told = re.findall(r"udpecho: answered 0; not answered: denied (\d+)", program.output)
            return sum(map(int, told))

        # a line may be due while they come
        assert within(lambda: denied() == 20), program.output


def test_adoptsSystemdsSocket(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        program = (
            "import os, sys; os.dup2(int(sys.argv.pop(1)), 3); os.set_inheritable(3, True); "
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); "
            "os.environ['LISTEN_FDNAMES'] = 'echo'; "
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        os.set_inheritable(sock.fileno(), True)
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(sock.fileno()), *TWISTD[1:], "-n", "--pidfile=",
             "udpecho", "--listen", "udp:systemd:name=echo"],
            cwd=tmp_path, env=environment(), close_fds=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        result = connpool("ping", f"127.0.0.1:{port}", "--count", "1", "--timeout", "20")
        assert result.returncode == 0, result.stdout
    finally:
        process.terminate()
        process.wait(20)


def test_twoProcessesShareAPort(tmp_path):
    first = "udp:0:interface=127.0.0.1:reusePort=yes"
    with twistd("udpecho", "--listen", first, cwd=tmp_path) as one:
        port = one.waitFor(ANSWERS)[2]
        second = f"udp:{port}:interface=127.0.0.1:reusePort=yes"
        with twistd("udpecho", "--listen", second, cwd=tmp_path) as other:
            other.waitFor(ANSWERS)
            result = connpool("ping", f"127.0.0.1:{port}", "--count", "3", "--interval", "0.01")
            assert result.returncode == 0


def test_probeKeepsMeasuring(tmp_path, echo):
    status = tmp_path / "status"
    with twistd(
        "udpprobe", "--to", echo, "--to", "127.0.0.1:9", "--interval", "0.02", "--round", "0.2",
        "--timeout", "0.2", "--status", f"unix:{status}", cwd=tmp_path,
    ) as program:  # fmt: skip
        program.waitFor(rf"{echo}: 10 sent, 0 lost, round trip min")
        program.waitFor(r"127.0.0.1:9: 10 sent, 10 lost, round trip none")
        metrics = fetch(status, "/metrics")
        name = re.escape(f'{{name="{echo}"}}')
        assert (
            int(float(re.search(rf"connpool_probe_received_total{name} (\S+)", metrics)[1])) >= 10
        )
        assert float(re.search(rf"connpool_probe_rtt_p50_seconds{name} (\S+)", metrics)[1]) > 0
        assert 'connpool_probe_up{name="127.0.0.1:9"} 0' in metrics
        program.stop()
        assert "Traceback" not in program.output


def test_mistakesOfTheProbe():
    from twisted.python.usage import UsageError

    from connpool.services.udpprobe import Options

    for arguments, says in (
        ([], "give --to HOST:PORT"),
        (["--to", "nowhere"], "has no port"),
        (["--to", "127.0.0.1:9", "--to", "127.0.0.1:9"], "127.0.0.1:9 is named twice"),
        (["--to", "127.0.0.1:9", "--protocol", "smtp"], "'smtp' is not one of"),
        (["--to", "127.0.0.1:9", "--size", "1"], "echo takes 12 to 65507 bytes"),
        (["--to", "127.0.0.1:9", "--interval", "never"], "--interval: 'never' is not a time"),
    ):
        with pytest.raises(UsageError, match=re.escape(says)):
            Options().parseOptions(arguments)
