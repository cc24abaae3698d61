"""
Files that come by HTTP, and those of C{filesend}, to receivers that share an engine.
"""

import base64
import hashlib
import http.client
import os
import signal
import time
from contextlib import suppress

import pytest

from examples.s3 import demo
from examples.s3.demo import balancer, receivers
from tests.helpers.processes import finished, twistd, within

pytestmark = [pytest.mark.slow, pytest.mark.peer("weed", "haproxy", "curl")]

#: Random throughout: what can be compressed would be over too soon.
CONTENT = os.urandom(27 << 20) + b"the end"
TUS = {"Tus-Resumable": "1.0.0"}


@pytest.fixture
def running(weed, tmp_path, prefix):
    with receivers(tmp_path, weed, 2, "--web", prefix=prefix.rstrip("/")) as running:
        yield running


@pytest.fixture
def front(tmp_path, running):
    with balancer(tmp_path, running) as (_, front):
        yield front


def same(weed, key, content):
    return weed.digest("files", key) == hashlib.sha256(content).digest()


def test_wholeFiles(weed, prefix, tmp_path, front):
    for name, content in (("small.txt", b"small"), ("large.bin", CONTENT)):
        path = tmp_path / name
        path.write_bytes(content)
        url = f"http://127.0.0.1:{front}/{name}"
        sent = finished("curl", "--fail", "--silent", "--show-error", "-T", path, url)
        assert sent.returncode == 0, sent.stderr
        assert same(weed, f"{prefix}{name}", content)


def ask(front, method, path, headers=None, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", front, timeout=60)
    try:
        # it may answer before it has the whole body
        with suppress(BrokenPipeError):
            connection.request(method, path, body, {**TUS, **(headers or {})})
        answer = connection.getresponse()
        answer.read()
        return answer
    finally:
        connection.close()


def resumed(front, path):
    """
    The offset of an upload, asked until some receiver answers.
    """
    end = time.monotonic() + 40
    while time.monotonic() < end:
        try:
            answer = ask(front, "HEAD", path)
        except (OSError, http.client.HTTPException):
            answer = None
        if answer is not None and answer.status == 200:
            return int(answer.headers["Upload-Offset"])
        time.sleep(0.2)
    raise AssertionError("nobody knows the upload")


def test_anUploadGoesOnElsewhere(weed, prefix, running, front):
    """
    An offset that was told is held by the engine: the receiver is killed right after.
    """
    name = base64.b64encode(b"upload.bin").decode()
    headers = {"Upload-Length": str(len(CONTENT)), "Upload-Metadata": f"filename {name}"}
    made = ask(front, "POST", "/", headers)
    assert made.status == 201
    path = "/" + made.headers["Location"].removeprefix("./")
    offset, sizes = 0, [13 << 20, 9 << 20, len(CONTENT)]
    patch = {"Content-Type": "application/offset+octet-stream"}
    for number, size in enumerate(sizes):
        piece = CONTENT[offset : offset + size]
        answer = ask(front, "PATCH", path, {**patch, "Upload-Offset": str(offset)}, piece)
        assert answer.status == 204, answer.headers
        offset = int(answer.headers["Upload-Offset"])
        assert offset == min(sum(sizes[: number + 1]), len(CONTENT))
        if offset < len(CONTENT):
            (busy,) = [each for each in running if each.received() > 0]
            busy.signal(signal.SIGKILL)
            busy.process.wait(10)
            assert resumed(front, path) == offset
            busy.start()
    assert same(weed, f"{prefix}upload.bin", CONTENT)


def test_anUploadWithoutAByteGoesOnElsewhere(weed, prefix, running, front):
    """
    Whichever receiver made it is another process when the first byte comes.
    """
    name = base64.b64encode(b"upload.bin").decode()
    headers = {"Upload-Length": str(len(CONTENT)), "Upload-Metadata": f"filename {name}"}
    made = ask(front, "POST", "/", headers)
    assert made.status == 201
    path = "/" + made.headers["Location"].removeprefix("./")
    for each in running:
        each.signal(signal.SIGKILL)
        each.process.wait(10)
        each.start()
    assert resumed(front, path) == 0
    patch = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    assert ask(front, "PATCH", path, patch, CONTENT).status == 204
    assert same(weed, f"{prefix}upload.bin", CONTENT)


def test_eachRequestGoesToAnotherReceiver(weed, prefix, tmp_path, running, monkeypatch):
    """
    A balancer need not keep the requests about an upload together.
    """
    sticky = demo.configuration

    def spread(front, behind):
        text = sticky(front, behind).replace("balance leastconn", "balance roundrobin")
        return "".join(f"{line}\n" for line in text.splitlines() if "stick" not in line)

    monkeypatch.setattr(demo, "configuration", spread)
    with balancer(tmp_path, running) as (_, front):
        name = base64.b64encode(b"upload.bin").decode()
        headers = {"Upload-Length": str(len(CONTENT)), "Upload-Metadata": f"filename {name}"}
        path = "/" + ask(front, "POST", "/", headers).headers["Location"].removeprefix("./")
        for offset in range(0, len(CONTENT), 5 << 20):
            fields = {"Content-Type": "application/offset+octet-stream"}
            fields["Upload-Offset"] = str(offset)
            piece = CONTENT[offset : offset + (5 << 20)]
            assert ask(front, "PATCH", path, fields, piece).status == 204, offset
    assert all(each.received() > 0 for each in running)
    assert same(weed, f"{prefix}upload.bin", CONTENT)


def test_filesend(weed, prefix, tmp_path, running, front):
    """
    A folder is forwarded while one receiver is killed.
    """
    outbox = tmp_path / "outbox"
    (outbox / "d").mkdir(parents=True)
    files = {f"d/small{n}": b"%d" % n * 100 for n in range(30)} | {"large.bin": CONTENT}
    for name, content in files.items():
        (outbox / name).write_bytes(content)
    words = [f"--directory={outbox}", f"--to=127.0.0.1:{front}", "--settle=0.5", "--interval=0.2"]
    with twistd("filesend", *words, "--bwlimit=12M", cwd=tmp_path) as sender:
        assert within(lambda: any(each.received() > 6 << 20 for each in running), 40), sender.output
        (busy, *_) = sorted(running, key=lambda each: -each.received())
        busy.signal(signal.SIGKILL)
        left = [outbox / name for name in files]
        assert within(lambda: not any(path.exists() for path in left), 60), sender.output
    for name, content in files.items():
        assert same(weed, f"{prefix}{name}", content), name
    assert len(weed.names("files", prefix)) == len(files)
