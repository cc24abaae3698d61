"""
C{--status} of real programs.
"""

import base64
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import trustme

from tests.helpers.processes import CHECKOUT, CONNPOOL, Popen, connpool, environment, twistd

LOOPBACK = "tcp:0:interface=127.0.0.1"


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def statusPort(program):
    return int(program.waitFor(r"status page at 127\.0\.0\.1:(\d+)")[1])


def underWay(port, enough, seconds=20.0):
    """
    The one transfer on the page, once it is far enough.
    """
    end = time.monotonic() + seconds
    while True:
        transfers = json.loads(get(port, "/status.json")[1])["transfers"]
        if transfers and enough(transfers[0]):
            (live,) = transfers
            return live
        assert time.monotonic() < end, transfers
        time.sleep(0.02)


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
            live = underWay(port, lambda each: each["done"] == 5000)
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


def test_oneIdFromTheClientToTheHook(tmp_path, root):
    """
    Live, in the client's output and receipt, in the log, for a listener.
    """
    shutil.copytree(CHECKOUT / "examples/listener", tmp_path / "plugins")
    options = ["--names=posix", "--listener=ledger:files.jsonl", f"--status={LOOPBACK}"]
    with twistd(
        "--logger=connpool.services.logs.jsonLines",
        "filerecv",
        f"--directory={root}",
        f"--listen={LOOPBACK}",
        *options,
        cwd=tmp_path,
        PYTHONPATH=f"{CHECKOUT}:{tmp_path}/plugins",
    ) as program:
        to = program.waitFor(r"connpool send --to (127\.0\.0\.1:\d+)")[1]
        port = statusPort(program)
        sender = Popen(
            [
                *(*CONNPOOL, "send", "--to", to, "--json"),
                *("--receipt", str(tmp_path / "receipts"), "--name", "<b>stdin", "-"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        try:
            sender.stdin.write(b"x" * (3 << 20))
            sender.stdin.flush()
            live = underWay(port, lambda each: each["done"] >= 1 << 20)
            assert (live["name"], live["protocol"]) == ("<b>stdin", "native")
            assert live["size"] is None
            output, _ = sender.communicate(timeout=30)
        finally:
            sender.kill()
            sender.wait()
            sender.stdin.close()
            sender.stdout.close()
        program.waitFor(f'"id": "{live["transferId"]}"')
        (line,) = [line for line in program.output.splitlines() if '"receipt"' in line]
    logged = json.loads(line)
    (hook,) = (tmp_path / "files.jsonl").read_text().splitlines()
    (receipt,) = (tmp_path / "receipts").read_text().splitlines()
    ids = {
        "page": live["transferId"],
        "client": json.loads(output)["receipt"]["transferId"],
        "receipt": json.loads(receipt)["transferId"],
        "log": logged["id"],
        "log's receipt": logged["receipt"]["transferId"],
        "hook": json.loads(hook)["transferId"],
    }
    assert len(set(ids.values())) == 1, ids
    assert logged["receipt"]["integrity"] == "verified"


def test_theSenderSaysTheSameId(tmp_path, root):
    outbox = tmp_path / "outbox"
    outbox.mkdir()
    listen = ["filerecv", f"--directory={root}", f"--listen={LOOPBACK}"]
    with twistd(*listen, cwd=tmp_path) as receiver:
        to = receiver.waitFor(r"connpool send --to (127\.0\.0\.1:\d+)")[1]
        watch = [f"--directory={outbox}", f"--to={to}", "--settle=0.1", "--interval=0.1"]
        with twistd("filesend", *watch, f"--status={LOOPBACK}", cwd=tmp_path) as sender:
            port = statusPort(sender)
            (outbox / "x").write_text("hello")
            transferId = sender.waitFor(r"filesend sent x, id (\w{32})")[1]
            text = get(port, "/metrics")[1]
            assert get(port, "/readyz") == (200, "ready\n")
        receiver.waitFor(rf"received x .*id {transferId}")
    assert sample(text, 'connpool_outbox_sent_total{name="filesend"}') == 1
    assert sample(text, 'connpool_outbox_sent_bytes_total{name="filesend"}') == 5
    assert sample(text, 'connpool_pool_dials_total{name="filesend"}') == 1


def test_aPasswordInsideTls(tmp_path, root):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    (tmp_path / "passwords").write_text("watcher:s3cret\n")
    status = f"secured:{LOOPBACK}:certificate=own.pem"
    with twistd(
        "udpecho",
        "--listen=udp:0:interface=127.0.0.1",
        f"--status={status}",
        "--status-auth=file:passwords",
        cwd=tmp_path,
    ) as program:
        url = f"https://127.0.0.1:{statusPort(program)}/status.json"
        context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        with pytest.raises(urllib.error.HTTPError, match="401") as caught:
            urllib.request.urlopen(url, timeout=20, context=context)
        caught.value.close()
        word = base64.b64encode(b"watcher:s3cret").decode()
        request = urllib.request.Request(url, headers={"Authorization": f"Basic {word}"})
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            assert json.load(answer)["ready"] is True
    assert "s3cret" not in program.output


def test_onAUnixSocket(tmp_path):
    with twistd(
        "udpecho",
        "--listen=udp:0:interface=127.0.0.1",
        "--status=unix:status.sock:mode=600",
        cwd=tmp_path,
    ) as program:
        program.waitFor(r"status page at \S*status\.sock")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(tmp_path / "status.sock"))
            client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_withoutStatusThereIsNoWebServer():
    script = (
        "import sys; from connpool.services.filerecv import Options, makeService; "
        "options = Options(); options.parseOptions([]); "
        "assert 'twisted.internet.reactor' not in sys.modules; makeService(options); "
        "sys.exit('twisted.web' in sys.modules or 'prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
