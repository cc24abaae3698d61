"""
The probe, on engines that can do all, and on one that answers 200 to what it does not look at.
"""

import http.server
import os
import re
import signal
import socket
import threading
import time

import pytest

from connpool.errors import StartFailed
from connpool.services import s3probe
from connpool.services.s3probe import Client, probe
from connpool.services.s3store import parseArguments
from connpool.transfer.stores.s3 import calls
from connpool.transfer.stores.s3.requests import Place
from connpool.transfer.stores.s3.signing import Keys, Signer
from tests.functional.s3.faults import proxied

weedOnly = pytest.mark.peer("weed")
FILES = Place("files", "files")


def probed(url, keys, place=FILES, prefix="p/", **named):
    urls = [url] if isinstance(url, str) else url
    text = "".join(f",endpoint={each}" for each in urls)
    addresses = parseArguments(f"bucket=files{text}").addresses
    return probe(addresses, place, prefix, Signer("us-east-1"), keys, **named)


def refusal(*given, **named):
    with pytest.raises(StartFailed) as caught:
        probed(*given, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
@weedOnly
def test_engineThatCanAll(weed, prefix):
    began = time.monotonic()
    engine = probed(weed.url, weed.keys, prefix=prefix)
    assert time.monotonic() - began < s3probe.MOST_SECONDS + 1
    assert engine.product.startswith("SeaweedFS")
    assert (engine.checksum, engine.completes, engine.unsafe) == ("crc32", True, "")
    # what it wrote is removed, by a thread that goes on
    for thread in threading.enumerate():
        if thread.name.startswith("s3-probe"):
            thread.join(20)
    addresses = parseArguments(f"bucket=files,endpoint={weed.url}").addresses
    client = Client(addresses, FILES, Signer("us-east-1"), weed.keys, None, time.monotonic() + 10)
    assert client.perform(calls.List(f".connpool/{prefix}")).entries == ()
    client.close()


@pytest.mark.slow
@weedOnly
def test_twoEndpoints(weed, prefix):
    url = weed.url.replace("127.0.0.1", "localhost")
    assert probed([weed.url, url], weed.keys, prefix=prefix).unsafe == ""


@pytest.mark.slow
@weedOnly
@pytest.mark.parametrize(
    "fault", ["before", "after", "done but 500", "503", "twice", "answer amid"]
)
def test_oneThingGoesWrong(weed, prefix, fault):
    """
    A good engine, at which one request has no answer, or another one, is not refused.
    """
    with proxied(weed.url) as proxy:
        # the first look, and amid the races
        for at in (0, 20):
            proxy.reset(fault, at)
            assert probed(proxy.url, weed.keys, prefix=prefix).unsafe == ""
            assert proxy.done.is_set()


@pytest.mark.slow
@weedOnly
def test_engineThatStopsForAWhile(weed, prefix):
    ended = []

    def run():
        ended.append(probed(proxy.url, weed.keys, prefix=prefix))

    with proxied(weed.url) as proxy:
        probing = threading.Thread(target=run)
        probing.start()
        # amid its races
        while len(proxy.requests) < 30 and probing.is_alive():
            time.sleep(0.01)
        os.killpg(weed.process.pid, signal.SIGSTOP)
        try:
            probing.join(4)
        finally:
            os.killpg(weed.process.pid, signal.SIGCONT)
        probing.join(s3probe.MOST_SECONDS)
    assert [each.unsafe for each in ended] == [""]


@pytest.mark.slow
@pytest.mark.peer("juicefs")
def test_engineThatIgnoresConditions(juice):
    text = refusal(juice.url, juice.keys)
    assert text.startswith(f"MinIO at {juice.url} cannot be shared: ")
    assert "of 8 writers won a race" in text
    assert "unsafe=yes" in text
    engine = probed(juice.url, juice.keys, unsafe=True)
    assert "won a race" in engine.unsafe
    assert (engine.checksum, engine.completes) == ("md5", False)


@pytest.mark.slow
@weedOnly
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"place": Place("nothing-there", "files")}, "make the bucket nothing-there first"),
        ({"place": Place("files", "nothing-there")}, "make the bucket nothing-there first"),
        ({"keys": Keys("AKWRONG", "x")}, "the keys of this engine"),
        ({"secret": "wrong"}, "the secret key is not the one"),
    ],
    ids=range(4),
)
def test_oneLine(weed, change, words):
    keys = change.get("keys", weed.keys)
    if "secret" in change:
        keys = Keys(weed.keys.access, change["secret"])
    text = refusal(weed.url, keys, change.get("place", FILES))
    assert words in text
    assert weed.url in text
    assert weed.keys.secret not in text


def test_nobodyThere():
    text = refusal("http://127.0.0.1:1", Keys("AK", "SK"))
    assert text == (
        "the engine at http://127.0.0.1:1 cannot be used: "
        "no answer from http://127.0.0.1:1: Connection refused"
    )


class Fake(http.server.BaseHTTPRequestHandler):
    """
    A server that gives one answer to everything.
    """

    answer = (403, b"")
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        status, body = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def fake():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, b"<Error><Code>AccessDenied</Code></Error>"), "allow s3:ListBucket"),
        ((301, b""), "sends us elsewhere"),
        ((200, b"surprise"), "that nobody wrote"),
        ((200, b"x" * (2 << 20)), "that nobody wrote"),
        ((501, b"<Error><Code>NotImplemented</Code></Error>"), "refuses Get"),
        ((404, b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"), "refuses|cannot|404|stores"),
    ],
    ids=range(6),
)
def test_enginesThatAreNone(monkeypatch, fake, answer, words):
    monkeypatch.setattr(Fake, "answer", answer)
    monkeypatch.setattr(Fake, "do_PUT", Fake.do_GET, raising=False)
    monkeypatch.setattr(s3probe, "MOST_SECONDS", 2.0)
    text = refusal(fake, Keys("AK", "the-secret"))
    assert "the-secret" not in text
    assert re.search(words, text)


def test_silence(monkeypatch):
    monkeypatch.setattr(s3probe, "MOST_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert re.search("in time|within 0.5 s", refusal(url, Keys("AK", "SK")))
