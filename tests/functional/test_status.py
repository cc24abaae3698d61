"""
C{--status} of real programs.
"""

import json
import re
import socket
import sys
import urllib.error
import urllib.request

import pytest

from tests.helpers.processes import connpool, twistd

LOOPBACK = "tcp:0:interface=127.0.0.1"


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def statusPort(program):
    return int(program.waitFor(r"status page at 127\.0\.0\.1:(\d+)")[1])


def sample(text, name):
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found is not None, f"no {name} in {text}"
    return float(found[1])


def test_filerecvShowsWhatItDoes(tmp_path, root):
    with twistd(
        "filerecv", f"--directory={root}", f"--listen={LOOPBACK}", f"--status={LOOPBACK}",
        "--drain-timeout=20", "--names=posix", cwd=tmp_path,
    ) as program:  # fmt: skip
        files = int(program.waitFor(r"connpool send --to 127\.0\.0\.1:(\d+)")[1])
        port = statusPort(program)
        assert get(port, "/readyz") == (200, "ready\n")
        path = tmp_path / "x.bin"
        path.write_bytes(b"x" * 1000)
        to = f"127.0.0.1:{files}"
        done = connpool("send", "--protocol", "classic", "--to", to, path)
        assert done.returncode in {0, 9}, done.stderr
        text = get(port, "/metrics")[1]
        assert sample(text, 'connpool_transfer_published_total{name="filerecv"}') == 1
        assert sample(text, 'connpool_transfer_received_bytes_total{name="filerecv"}') == 1000
        assert sample(text, 'connpool_listener_accepted_total{name="filerecv"}') == 1
        assert sample(text, 'connpool_tcp_listen{name="filerecv"}') == 1

        # one transfer under way, and the service told to stop
        with socket.create_connection(("127.0.0.1", files), timeout=20) as sender:
            sender.sendall("<b>größe.bin".encode())
            assert sender.recv(100) == b"ok"
            sender.sendall(b"y" * 5000)
            look = {}
            for _ in range(1000):
                look = json.loads(get(port, "/status.json")[1])
                if look["transfers"] and look["transfers"][0]["done"] == 5000:
                    break
            (live,) = look["transfers"]
            assert live["name"] == "<b>größe.bin"
            assert (live["phase"], live["slowedBy"]) == ("moving", "peer")
            program.process.terminate()
            program.waitFor("SIGTERM")
            code, why = get(port, "/readyz")
            assert (code, "filerecv: not running\n" in why) == (503, True)
            assert get(port, "/healthz")[0] == 200
        assert program.process.wait(20) in {0, -15}
    # the same id everywhere
    assert program.output.count(live["transferId"]) == 1
    assert (root / "<b>größe.bin").read_bytes() == b"y" * 5000


@pytest.mark.parametrize("plugin", ["udpecho", "filerecv"])
def test_aTakenStatusPortIsOneLine(tmp_path, root, plugin):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        extra = [f"--directory={root}"] if plugin == "filerecv" else []
        listen = "udp:0:interface=127.0.0.1" if plugin == "udpecho" else LOOPBACK
        with twistd(
            plugin, *extra, f"--listen={listen}", f"--status={status}", cwd=tmp_path
        ) as program:
            program.waitFor("Address already in use")
            assert program.process.wait(20) == 1
        assert "Traceback" not in program.output
        assert status in program.output


def test_composedServicesShareOnePage(tmp_path, root):
    (tmp_path / "all.toml").write_text(
        f"""
        [services.inbox]
        plugin = "filerecv"
        directory = "{root}"
        listen = ["{LOOPBACK}"]

        [services.echo]
        plugin = "udpecho"
        listen = ["udp:0:interface=127.0.0.1", "{LOOPBACK}"]
        """
    )
    with twistd("compose", f"--status={LOOPBACK}", "all.toml", cwd=tmp_path) as program:
        port = statusPort(program)
        text = get(port, "/metrics")[1]
        for name in (
            'connpool_transfer_active{name="inbox"}',
            'connpool_listener_connections{name="inbox"}',
            'connpool_datagram_received_total{name="echo"}',
            'connpool_listener_connections{name="echo/echo-tcp"}',
        ):
            assert sample(text, name) == 0
        assert get(port, "/readyz") == (200, "ready\n")


def test_withoutStatusThereIsNoWebServer():
    import subprocess

    script = (
        "import sys; from connpool.services.filerecv import Options, makeService; "
        "options = Options(); options.parseOptions([]); "
        "assert 'twisted.internet.reactor' not in sys.modules; makeService(options); "
        "sys.exit('twisted.web' in sys.modules or 'prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
