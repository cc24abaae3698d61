"""
The examples of C{docs/proxyprotocol.rst} and C{docs/addresses.rst}, run.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_twisted
import trustme
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    clientFromString,
    connectProtocol,
    serverFromString,
)

from connpool.addresses import parseListen
from connpool.proxyprotocol import ProxyHeaderEndpoint, ProxyStats
from connpool.services import filerecv
from tests.helpers.processes import connpool
from tests.helpers.protocols import Reader
from tests.helpers.waiting import bounded, until

DOCS = Path(__file__).parent.parent.parent / "docs"
PROXY = (DOCS / "proxyprotocol.rst").read_text()
ADDRESSES = (DOCS / "addresses.rst").read_text()

BLOCK = re.compile(r"^\.\. code-block:: (\w+)\n\n((?:   .*\n|\n)+)", re.MULTILINE)


def examples(page, kind):
    return [
        "\n".join(line[3:] for line in text.rstrip("\n").split("\n"))
        for found, text in BLOCK.findall(page)
        if found == kind
    ]


def asked():
    (session,) = examples(ADDRESSES, "console")
    lines = session.split("\n")
    return list(zip(lines[::2], lines[1::2], strict=True))


@pytest.mark.parametrize(("line", "answer"), asked())
def test_resolveExamples(line, answer):
    """
    Each prompt is followed by what it prints.
    """
    found = connpool(*shlex.split(line.removeprefix("$ connpool ")))
    assert (found.stdout + found.stderr).rstrip("\n") == answer


def test_addressesInAProgram():
    (example,) = examples(ADDRESSES, "python")
    found = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout == "fe80::1 8640 eth0\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    issued = trustme.CA().issue_cert("localhost")
    (tmp_path / "cert.pem").write_bytes(issued.cert_chain_pems[0].bytes())
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_everyEndpointStringIsOne(here):
    """
    All strings of the page that are written out are read.
    """
    found = re.findall(r"``((?:secured|proxied|proxyheader):[^`…]+:[^`…]+)``", PROXY)
    assert len(found) >= 5
    for text in found:
        if text.startswith("proxyheader:"):
            clientFromString(reactor, text)
        elif parseListen(text).datagram:
            assert parseListen(text).keywords["trusted"]
        else:
            serverFromString(reactor, text)


def test_theCommandLine(here):
    (command,) = examples(PROXY, "console")
    words = shlex.split(command.replace("\\\n", ""))
    options = filerecv.Options()
    options.parseOptions(words[words.index("filerecv") + 1 :])
    assert options["listen"][0].wrappers == ("proxied",)


def test_theTableOfPolicies():
    from connpool.proxyprotocol import Policy

    for policy in Policy:
        assert f"``policy={policy.value}``" in PROXY


def test_everyNumberIsNamed():
    import attrs

    for field in attrs.fields(ProxyStats):
        assert f"``{field.name}``" in PROXY


@pytest_twisted.ensureDeferred
async def test_theGreeter():
    """
    Direct, through a header, and from a proxy that speaks for itself.
    """
    server, client = examples(PROXY, "python")
    server = server.replace("\nendpoint.listen(", "\nlistening = endpoint.listen(")
    space = {}
    exec(server, space)
    port = await bounded(space["listening"])
    exec(client, {})

    plainly = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
    source = IPv4Address("TCP", "192.0.2.7", 40000)
    for endpoint, said in (
        (ProxyHeaderEndpoint(plainly, source, source), b"hello, 192.0.2.7\n"),
        (ProxyHeaderEndpoint(plainly), b"hello, whoever you are\n"),
    ):
        reader = await bounded(connectProtocol(endpoint, Reader()))
        await until(lambda reader=reader: reader.data.endswith(b"\n"))
        assert reader.data == said
        reader.transport.loseConnection()
        await until(lambda reader=reader: reader.lost)
    await bounded(port.stopListening())
