"""
HTTP at a real receiver: curl, the recipes of docs/web.rst, and requests that a proxy in front
and the receiver may understand differently.
"""

import base64
import json
import os
import re
import signal
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from stat import S_ISREG

import pytest
import trustme

from tests.helpers.httpproxies import haproxy, nginx, recipe
from tests.helpers.processes import finished, twistd, within
from tests.transfer.web.corpus import FRAMING, HIDDEN

pytestmark = pytest.mark.peer("curl")

PROXIES = {"nginx": nginx, "HAProxy": haproxy}
KEEPING = {**PROXIES, "nginx that keeps connections": partial(nginx, keeps=True)}


@pytest.fixture
def receiver(tmp_path):
    """
    The receiver of C{make run}.
    """
    with running(tmp_path) as (port, program):
        yield port, program, tmp_path / "received"


@contextmanager
def running(directory, *options, listen="tcp:0:interface=127.0.0.1"):
    """
    A receiver with options, on a port of its own.
    """
    with twistd("filerecv", "--listen", listen, *options, cwd=directory) as program:
        yield int(program.waitFor(r"listens on [^ ]*:(\d+),")[1]), program


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def certificate(tmp_path, authority):
    path = tmp_path / "files.pem"
    authority.issue_cert(
        "files.example", "inbox.example"
    ).private_key_and_cert_chain_pem.write_to_path(str(path))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return path


def curl(*arguments):
    result = finished("curl", "-sS", "-w", "\n%{http_code}", *arguments)
    body, _, status = result.stdout.rpartition("\n")
    return int(status), body, result


def commands(caption, directory, **replaced):
    """
    Run the commands of a recipe.
    """
    text = recipe(caption).replace("\\\n", "")
    for old, new in replaced.items():
        text = text.replace(old, new)
    script = "\n".join(line.removeprefix("$ ") for line in text.splitlines())
    return finished("sh", "-ec", script, cwd=directory)


def test_theRecipesForCurl(receiver, tmp_path):
    port, program, files = receiver
    (tmp_path / "report.pdf").write_bytes(b"report")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").write_bytes(os.urandom(1 << 20))
    here = {"127.0.0.1:8640": f"127.0.0.1:{port}"}
    result = commands("curl", tmp_path, **here)
    assert result.returncode == 0, result.stderr
    assert (files / "report.pdf").read_bytes() == b"report"
    assert (files / "2026/november/report.pdf").read_bytes() == b"report"
    listing = finished("tar", "tf", files / "photos.tar").stdout
    assert "photos/1.jpg" in listing
    result = commands("a file that must arrive as it is", tmp_path, **here)
    assert json.loads(result.stdout)["integrity"] == "verified"
    assert (files / "checked/report.pdf").exists()
    assert within(lambda: program.output.count("received ") == 4)
    told = json.loads(commands("a form", tmp_path, **here).stdout)
    assert [each["name"] for each in told] == ["forms/report.pdf", "forms/holiday/1.jpg"]
    assert (files / "forms/holiday/1.jpg").stat().st_size == 1 << 20
    assert "curl -T FILE" in program.output
    assert f"http://127.0.0.1:{port}/" in program.output


def test_curlAsPeopleUseIt(receiver, tmp_path):
    port, program, files = receiver
    url = f"http://127.0.0.1:{port}/"
    large = tmp_path / "läрge (1)#?.bin"
    large.write_bytes(os.urandom(3_000_000))
    assert curl("-T", large, url)[0] == 201
    assert (files / large.name).read_bytes() == large.read_bytes()
    status, body, _ = curl("-T", large, "-C", "-", url)
    assert (status, json.loads(body)["status"]) == (200, "duplicate")
    status, body, _ = curl("-T", large, "-C", "1000000", url + "rest")
    assert (status, json.loads(body)["code"]) == (400, "unsupported")
    empty = tmp_path / "empty"
    empty.touch()
    assert curl("-T", empty, url)[0] == 201
    assert curl("--http1.0", "-T", empty, url + "old")[0] == 201
    assert curl("--path-as-is", "-T", empty, url + "../x")[0] == 400
    assert curl("--http2-prior-knowledge", url)[2].returncode != 0
    status, body, _ = curl("-T", large, "-H", "Host: evil.example", url + "evil")
    assert status == 421
    assert not (files / "evil").exists()
    assert "Traceback" not in program.output


def arriving(program):
    """
    Tell whether a file comes: the receiver has one open that has bytes and may have no name.
    """
    descriptors = Path(f"/proc/{program.process.pid}/fd")
    for each in descriptors.iterdir():
        try:
            status = each.stat()
            regular = S_ISREG(status.st_mode) and "received" in str(each.readlink())
            if regular and status.st_size > 10_000:
                return True
        except OSError:
            pass
    return False


def test_aKilledReceiverLeavesNothingBehind(tmp_path):
    body = tmp_path / "body"
    body.write_bytes(bytes(50_000_000))
    with running(tmp_path) as (port, program):
        sending = subprocess.Popen(
            ["curl", "-sS", "--limit-rate", "5M", "-T", body, f"http://127.0.0.1:{port}/"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert within(lambda: arriving(program))
        program.process.send_signal(signal.SIGKILL)
        sending.communicate(timeout=20)
        assert sending.returncode != 0
    with running(tmp_path) as (port, program):
        assert not (tmp_path / "received/body").exists()
        assert curl("-T", body, f"http://127.0.0.1:{port}/")[0] == 201


def test_aStopLetsAFileEnd(tmp_path):
    body = tmp_path / "body"
    body.write_bytes(os.urandom(4_000_000))
    with running(tmp_path) as (port, program):
        sending = subprocess.Popen(
            ["curl", "-sS", "--limit-rate", "2M", "-T", body, f"http://127.0.0.1:{port}/"],
            stdout=subprocess.PIPE,
        )
        assert within(lambda: arriving(program))
        program.process.send_signal(signal.SIGTERM)
        assert json.loads(sending.communicate(timeout=20)[0])["status"] == "stored"
    assert (tmp_path / "received/body").read_bytes() == body.read_bytes()


def test_theDoorIsOnlyOpenHere(tmp_path):
    """
    A receiver that other machines reach serves no HTTP to them until C{--web} is given.
    """
    body = tmp_path / "body"
    body.write_bytes(b"body")
    (tmp_path / "received").mkdir()
    # what came from a proxy is from elsewhere, wherever the proxy runs
    listen = r"proxied:tcp:0:interface=127.0.0.1:trusted=127.0.0.1"
    options = ("--directory", "received", "--allow", "192.0.2.0/24")
    header = "--haproxy-protocol"
    with running(tmp_path, *options, "--allow=127.0.0.1", listen=listen) as (port, program):
        status, text, _ = curl(header, "-T", body, f"http://127.0.0.1:{port}/")
        assert status == 403
        assert "--web" in json.loads(text)["detail"]
        assert "received " not in program.output
    with running(tmp_path, *options, "--allow=127.0.0.1", "--web", listen=listen) as (port, _):
        assert curl(header, "-T", body, f"http://127.0.0.1:{port}/")[0] == 201
    # one whose address is not let in hears so in its own protocol
    with running(tmp_path, "--directory", "received", "--deny", "127.0.0.1") as (port, _):
        status, text, _ = curl("-T", body, f"http://127.0.0.1:{port}/")
        assert (status, json.loads(text)["code"]) == (403, "forbidden")
        assert "--allow" in json.loads(text)["detail"]
    with running(tmp_path, "--no-web") as (port, program):
        status, text, _ = curl("--http0.9", "-T", body, f"http://127.0.0.1:{port}/")
        assert text.startswith("name-refused")
        assert "curl -T" not in program.output


def test_theRecipesForOthers(tmp_path, certificate):
    (tmp_path / "received").mkdir()
    (tmp_path / "passwords").write_text("alice:right\n")
    (tmp_path / "report.pdf").write_bytes(b"report")
    (tmp_path / "passwords.netrc").write_text("machine inbox.example login alice password right\n")
    text = recipe("for a phone or another machine").replace("\\\n", "")
    words = text.split()
    options = words[words.index("filerecv") + 1 :]
    assert "--web" in options
    replaced = {
        "/srv/inbox": "received",
        "secured:tcp:8640:certificate=/etc/ssl/private/inbox.pem": None,
        "--listen": None,
        "file:/etc/connpool/passwords": f"file:{tmp_path}/passwords",
    }
    options = [replaced.get(word, word) for word in options if replaced.get(word, word)]
    listen = f"secured:tcp:0:certificate={certificate}"
    with running(tmp_path, *options, listen=listen) as (port, _):
        send = recipe("with a password").strip().removeprefix("$ curl ")
        arguments = send.replace(":8640", f":{port}").split()
        where = ["--resolve", f"inbox.example:{port}:127.0.0.1", "--cacert", tmp_path / "ca.pem"]
        where += ["-T", tmp_path / "report.pdf", "--netrc-file", tmp_path / "passwords.netrc"]
        status, text, _ = curl(*where, arguments[-1])
        assert (status, json.loads(text)["principal"]) == (201, "alice")
        assert curl(*where[:4], "-T", certificate, arguments[-1])[0] == 401


def behind(directory, name, certificate, *options):
    """
    The receiver behind a proxy, each by its recipe.
    """
    (directory / "received").mkdir(exist_ok=True)
    (directory / "passwords").write_text("alice:right\n")
    words = recipe("the receiver behind them").replace("\\\n", "").split()
    url = words[words.index("--web-url") + 1]
    return running(
        directory,
        *("--directory", "received", "--auth", f"file:{directory}/passwords"),
        *("--web-url", url, *options),
    )


@pytest.mark.peer("nginx")
@pytest.mark.peer("haproxy")
@pytest.mark.parametrize("name", PROXIES)
def test_behindAProxy(tmp_path, certificate, name):
    body = tmp_path / "body"
    body.write_bytes(os.urandom(2_000_000))
    with (
        behind(tmp_path, name, certificate) as (port, program),
        PROXIES[name](tmp_path, port, certificate) as front,
    ):
        path = "/up/" if name == "nginx" else "/"
        where = ["--resolve", f"files.example:{front}:127.0.0.1", "--cacert", tmp_path / "ca.pem"]
        url = f"https://files.example:{front}{path}"
        status, text, _ = curl(*where, "-u", "alice:right", "-T", body, url + "a/")
        assert status == 201, text
        assert json.loads(text)["principal"] == "alice"
        assert (tmp_path / "received/a/body").read_bytes() == body.read_bytes()
        assert curl(*where, "-T", body, url)[0] == 401
        assert curl(*where, "-u", "alice:wrong", "-T", body, url)[0] == 401
        evil = ["-H", "Origin: https://evil.example"]
        assert curl(*where, "-u", "alice:right", *evil, "-T", body, url)[0] == 403
        own = ["-H", f"Origin: https://files.example:{front}"]
        assert curl(*where, "-u", "alice:right", *own, "-T", body, url)[0] == 201
        assert "Traceback" not in program.output
    with (
        running(tmp_path) as (port, program),
        PROXIES[name](tmp_path, port, certificate) as front,
    ):
        # undeclared: nobody is local through it
        url = f"https://files.example:{front}{path}"
        where[1] = f"files.example:{front}:127.0.0.1"
        status, text, _ = curl(*where, "-H", "Host: localhost", "-T", body, url)
        assert status == 403
        assert "--web-url" in text


def conversation(address, raw, tls=None):
    """
    Send bytes, half-close where that can be done, and read to the end.
    """
    plain = socket.create_connection(address, 30)
    with plain if tls is None else tls.wrap_socket(plain, server_hostname="files.example") as end:
        end.settimeout(30)
        answer = b""
        try:
            end.sendall(raw)
            if tls is None:
                end.shutdown(socket.SHUT_WR)
            while piece := end.recv(65536):
                answer += piece
        except (TimeoutError, ConnectionError, ssl.SSLError):
            pass
        return answer


@pytest.mark.slow
@pytest.mark.peer("nginx")
@pytest.mark.peer("haproxy")
@pytest.mark.parametrize("name", KEEPING)
def test_smuggling(tmp_path, certificate, name):
    """
    Each request of the corpus, behind a good one, through a proxy that keeps its connections:
    the receiver never carries out more requests than the client gets answers for.
    """
    authorization = b"Authorization: Basic " + base64.b64encode(b"alice:right") + b"\r\n"
    tls = ssl.create_default_context(cafile=None)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    with (
        behind(tmp_path, name, certificate) as (port, program),
        KEEPING[name](tmp_path, port, certificate) as front,
    ):
        prefix = b"" if name == "HAProxy" else b"/up"
        raws = [raw for raw, _ in FRAMING.values()]

        def through(raw):
            raw = re.sub(rb"(?i)^((?:put|PUT|PRI)\s+)/", rb"\g<1>" + prefix + b"/", raw)
            return raw.replace(b"\r\n", b"\r\n" + authorization, 1)

        def one(number, raw):
            good = b"PUT /good%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\ngood"
            last = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            wire = [good % number, raw, HIDDEN.replace(b"/hidden", b"/hidden%d" % number), last]
            return conversation(("127.0.0.1", front), b"".join(map(through, wire)), tls)

        with ThreadPoolExecutor(8) as pool:
            requests = [raw.replace(b"/seen", b"/seen%d" % n) for n, raw in enumerate(raws)]
            answers = list(pool.map(one, range(len(raws)), requests))
        files = {path.name for path in (tmp_path / "received").iterdir()}
        assert files >= {f"good{number}" for number in range(len(raws))}
        for number, (raw, answer) in enumerate(zip(raws, answers, strict=True)):
            stored = len(files & {f"{kind}{number}" for kind in ("good", "seen", "hidden")})
            assert answer.count(b"HTTP/1.1 201") == stored, (raw, answer)
        assert "Traceback" not in program.output
