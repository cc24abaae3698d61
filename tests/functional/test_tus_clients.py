"""
Clients of tus as they are, through cuts of the connection and deaths of the receiver.
"""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from tests.helpers import httpproxies
from tests.helpers.httpproxies import recipe
from tests.helpers.processes import CHECKOUT, environment, finished, twistd, within
from tests.helpers.trees import filesBelow
from tests.helpers.valve import Valve

SIZE = 3_000_000
MODULES = os.environ.get("CONNPOOL_NODE_MODULES")

TUSPY = """
import sys
from tusclient.client import TusClient
url, path, chunk = sys.argv[1:]
metadata = {"filename": path.rpartition("/")[2]}
uploader = TusClient(url).uploader(
    path, chunk_size=int(chunk), metadata=metadata, retries=50, retry_delay=0.2,
    upload_checksum=True, verify_tls_cert=False,
)
uploader.upload()
print("done")
"""
AIOTUS = """
import asyncio, sys, aiotus
url, path, chunk = sys.argv[1:]
config = aiotus.RetryConfiguration(retry_attempts=50, max_retry_period_seconds=0.2)
metadata = {"filename": path.rpartition("/")[2].encode()}

async def send():
    with open(path, "rb") as file:
        return await aiotus.upload(
            url, file, metadata, config=config, chunksize=int(chunk)
        )

print("done" if asyncio.run(send()) else "failed")
"""


def tuspy(url, path, chunk):
    return [sys.executable, "-c", TUSPY, url, path, str(chunk)]


def aiotus(url, path, chunk):
    return [sys.executable, "-c", AIOTUS, url, path, str(chunk)]


def nodeModules():
    """
    The directory in which npm has installed tus-js-client.
    """
    if MODULES is None:
        if os.environ.get("CI"):
            pytest.fail("CONNPOOL_NODE_MODULES does not say where tus-js-client is")
        pytest.skip(
            "npm install tus-js-client, and set CONNPOOL_NODE_MODULES to the directory that has"
            " node_modules"
        )
    return MODULES


def tusJsClient(url, path, chunk):
    script = Path(__file__).with_name("tusclient.mjs")
    return ["node", script, nodeModules(), url, path, str(chunk)]


CLIENTS = pytest.mark.parametrize("client", [tuspy, aiotus, tusJsClient])


#: A store in memory, which shows its files when the receiver stops.
SHOWN = """
import pathlib
from twisted.plugin import IPlugin
from zope.interface import implementer
from connpool.interfaces import IFileStoreFactory

@implementer(IPlugin, IFileStoreFactory)
class Shown:
    name = "shown"
    description = "for tests"
    takes = frozenset()

    def make(self, arguments):
        from connpool.transfer.stores import MemoryStore

        class Store(MemoryStore):
            def close(self):
                for name, content in self.files.items():
                    pathlib.Path(arguments, name).write_bytes(content)
                return super().close()

        return lambda reactor, settings: Store()

shown = Shown()
"""


@contextmanager
def receiver(directory, valve, *options, url=True, **environment):
    words = ["--listen", "tcp:0:interface=127.0.0.1", *options]
    if url:
        words += ["--web-url", f"http://127.0.0.1:{valve.port}/"]
    with twistd("filerecv", *words, cwd=directory, **environment) as program:
        valve.target = int(program.waitFor(r"listens on [^ ]*:(\d+),")[1])
        yield program


def begun(directory):
    """
    The partials that have a byte; an upload without one does not outlive its receiver.
    """
    partials = filesBelow(directory / "received/.connpool/partials")
    return [path for path, status in partials.items() if not path.suffix and status.st_size]


def written(directory):
    """
    The bytes that partials have.
    """
    partials = filesBelow(directory / "received/.connpool/partials").values()
    return sum(min(status.st_size, status.st_blocks * 512) for status in partials)


@pytest.fixture
def valve():
    made = Valve()
    yield made
    made.close()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "läрge 1.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


@contextmanager
def inMemory(directory, valve, *options):
    """
    A receiver whose store is in memory; its files are in C{received} in the end.
    """
    plugins = directory / "plugins/twisted/plugins"
    plugins.mkdir(parents=True)
    (plugins / "shown.py").write_text(SHOWN)
    (directory / "received").mkdir()
    path = f"{CHECKOUT}:{directory}/plugins"
    words = ("--store", f"shown:{directory}/received", *options)
    with receiver(directory, valve, *words, PYTHONPATH=path) as program:
        yield program


@contextmanager
def sending(client, valve, source, chunk, url=None):
    command = client(url or f"http://127.0.0.1:{valve.port}/", str(source), chunk)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    try:
        yield process
        said, _ = process.communicate(timeout=60)
        assert said.splitlines()[-1:] == ["done"], said
    finally:
        process.kill()
        process.communicate()


@CLIENTS
@pytest.mark.parametrize("chunk", [pytest.param(1 << 20, marks=pytest.mark.slow), 1 << 30])
def test_theReceiverIsKilled(tmp_path, valve, source, client, chunk):
    valve.allow(1_500_000)
    with receiver(tmp_path, valve) as first, sending(client, valve, source, chunk):
        valve.waitUntilHeld()
        assert within(lambda: begun(tmp_path))
        first.process.kill()
        first.process.wait()
        with receiver(tmp_path, valve) as second:
            valve.allow(float("inf"))
            second.waitFor("received ", 60)  # clients wait longer after each failure
            text = first.output + second.output
            assert text.count("received ") == 1
    assert (tmp_path / "received" / source.name).read_bytes() == source.read_bytes()
    assert [each.name for each in (tmp_path / "received").iterdir()] in (
        [source.name, ".connpool"],
        [".connpool", source.name],
    )
    # it went on where it was, or at the last checkpoint
    assert valve.passed < SIZE + 1_600_000
    assert "Traceback" not in text


@CLIENTS
@pytest.mark.parametrize("store", [receiver, inMemory])
def test_theConnectionIsCut(tmp_path, valve, source, client, store):
    valve.allow(1_000_000)
    # tuspy sends checksums: what came of a request that is cut is dropped then
    with store(tmp_path, valve) as program, sending(client, valve, source, 1 << 18):
        for allowed in (2_000_000, 3_000_000, float("inf")):
            valve.waitUntilHeld()
            valve.cut()
            valve.allow(allowed)
        program.waitFor("received ")
    assert (tmp_path / "received" / source.name).read_bytes() == source.read_bytes()
    assert valve.passed < SIZE + 1_000_000
    assert "Traceback" not in program.output


@pytest.mark.parametrize(
    "caption", ["tuspy", "aiotus, with --web-url of the receiver", "tus-js-client"]
)
def test_theRecipes(tmp_path, valve, caption):
    valve.allow(float("inf"))
    (tmp_path / "report.pdf").write_bytes(os.urandom(1 << 20))
    script = recipe(caption).replace("127.0.0.1:8640", f"127.0.0.1:{valve.port}")
    command = [sys.executable, "-c", script]
    if caption == "tus-js-client":
        (tmp_path / "node_modules").symlink_to(f"{nodeModules()}/node_modules")
        (tmp_path / "send.mjs").write_text(script)
        command = ["node", "send.mjs"]
    with receiver(tmp_path, valve):
        ended = finished(*command, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    sent = (tmp_path / "report.pdf").read_bytes()
    assert (tmp_path / "received/report.pdf").read_bytes() == sent


@pytest.mark.peer("curl")
def test_theRecipeForCurl(tmp_path, valve):
    (tmp_path / "large.iso").write_bytes(os.urandom(SIZE))
    text = recipe("curl, a large file that goes on").replace("\\\n", "")
    text = text.replace("127.0.0.1:8640", f"127.0.0.1:{valve.port}")
    script = "\n".join(line.removeprefix("$ ") for line in text.splitlines())
    valve.allow(1_500_000)
    with receiver(tmp_path, valve, url=False) as program:
        with subprocess.Popen(
            ["sh", "-ec", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        ) as shell:
            valve.waitUntilHeld()
            # what is still on its way would come again
            assert within(lambda: written(tmp_path) > valve.passed - 50_000)
            valve.cut()
            valve.allow(float("inf"))
            said, _ = shell.communicate(timeout=60)
        assert shell.returncode == 0
        assert "broken off" in said
        assert json.loads(said.splitlines()[-1])["status"] == "stored"
        assert "Traceback" not in program.output
    sent = (tmp_path / "large.iso").read_bytes()
    assert (tmp_path / "received/large.iso").read_bytes() == sent
    assert valve.passed < SIZE + 100_000


@pytest.fixture
def certificate(tmp_path, monkeypatch):
    """
    One that the clients are told to take.
    """
    monkeypatch.setenv("NODE_TLS_REJECT_UNAUTHORIZED", "0")
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    path = tmp_path / "files.pem"
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


@contextmanager
def through(client, url, source, valve, program):
    """
    Send by way of a proxy, with a cut in the middle.
    """
    valve.allow(1_500_000)
    with sending(client, valve, source, 1 << 20, url):
        valve.waitUntilHeld()
        valve.cut()
        valve.allow(float("inf"))
        yield
        program.waitFor("received ", 60)
    assert "Traceback" not in program.output


@pytest.mark.peer("nginx")
@pytest.mark.parametrize("client", [tuspy, tusJsClient])
def test_behindNginx(tmp_path, valve, source, client, certificate, monkeypatch):
    # TLS and a path of its own, and the receiver knows nothing of either
    text = httpproxies.RECIPES.replace("proxy_set_header X-Forwarded-For $remote_addr;", "")
    assert text != httpproxies.RECIPES
    monkeypatch.setattr(httpproxies, "RECIPES", text)
    proxy = tmp_path / "proxy"
    proxy.mkdir()
    with (
        receiver(tmp_path, valve, url=False) as program,
        httpproxies.nginx(proxy, valve.target, certificate) as valve.target,
        through(client, f"https://127.0.0.1:{valve.port}/up/", source, valve, program),
    ):
        pass
    assert (tmp_path / "received" / source.name).read_bytes() == source.read_bytes()


@pytest.mark.peer("haproxy")
@pytest.mark.parametrize("client", [tuspy, tusJsClient])
def test_behindHAProxy(tmp_path, valve, source, client, certificate):
    url = f"https://127.0.0.1:{valve.port}/"
    with (
        receiver(tmp_path, valve, "--web-url", url, url=False) as program,
        httpproxies.haproxy(tmp_path, valve.target, certificate) as valve.target,
        through(client, url, source, valve, program),
    ):
        pass
    assert (tmp_path / "received" / source.name).read_bytes() == source.read_bytes()


@pytest.mark.peer("haproxy")
@pytest.mark.parametrize("client", [tuspy, tusJsClient])
def test_behindHAProxyThatPassesConnectionsOn(tmp_path, valve, source, client, certificate):
    words = recipe("the receiver, told the addresses").replace("\\\n", "").split()
    options = words[words.index("filerecv") + 1 : words.index("--auth")]
    listen = options[options.index("--listen") + 1].replace(":8640:", ":0:")
    listen = listen.replace("/etc/ssl/private/files.pem", str(certificate))
    words = ("filerecv", "--web", "--allow", "127.0.0.1", "--listen", listen)
    with twistd(*words, cwd=tmp_path) as program:
        port = int(program.waitFor(r"listens on [^ ]*:(\d+),")[1])
        with (
            httpproxies.haproxy(
                tmp_path, port, certificate, "HAProxy, by connections"
            ) as valve.target,
            through(client, f"https://127.0.0.1:{valve.port}/", source, valve, program),
        ):
            pass
    assert (tmp_path / "received" / source.name).read_bytes() == source.read_bytes()
