"""
Uppy in Chromium, on a page of another origin, through cuts and the death of the receiver.
"""

import functools
import http.server
import os
import subprocess
import threading
from contextlib import ExitStack, contextmanager

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.functional.test_tus_clients import begun, inMemory, nodeModules, receiver
from tests.helpers.httpproxies import recipe
from tests.helpers.processes import within
from tests.helpers.valve import Valve
from tests.helpers.waiting import bounded
from tests.observe.chromium import browser

pytestmark = [pytest.mark.slow, pytest.mark.peer("chromium"), pytest.mark.peer("node")]

SIZE = 3_000_000
UPLOAD = """
(async () => {
  const content = (seed) => {
    const bytes = new Uint8Array(%d)
    for (let at = 0, value = seed; at < bytes.length; at++) {
      value = (value * 16807) %% 2147483647
      bytes[at] = value >> 8
    }
    return bytes
  }
  for (const [seed, name] of [[1, 'läрge 1.bin'], [2, 'two.bin']]) {
    const data = new File([content(seed)], name, { lastModified: 1600000000123 })
    uppy.addFile({ name, data, meta: { relativePath: null } })
  }
  uppy.addFile({ name: 'empty', data: new File([], 'empty') })
  uppy.upload().then((result) => {
    globalThis.ended = [result.successful.length, result.failed.length]
  })
  return true
})()
"""


def content(seed):
    value, made = seed, bytearray()
    for _ in range(SIZE):
        value = value * 16807 % 2147483647
        made.append(value >> 8 & 255)
    return bytes(made)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *details):
        pass


@contextmanager
def page(directory):
    """
    A web site of its own.
    """
    serve = functools.partial(Quiet, directory=directory)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def bundle(directory, script):
    modules = nodeModules()
    directory.mkdir()
    (directory / "node_modules").symlink_to(f"{modules}/node_modules")
    (directory / "page.mjs").write_text(script + "\nglobalThis.uppy = uppy\n")
    subprocess.run(
        [
            f"{modules}/node_modules/.bin/esbuild",
            *("page.mjs", "--bundle", "--outfile=page.js", "--log-level=error"),
        ],
        cwd=directory,
        check=True,
    )
    (directory / "index.html").write_text('<!doctype html><script src="page.js"></script>')


@pytest.mark.parametrize("store", [receiver, inMemory])
@pytest_twisted.ensureDeferred
async def test_uppy(tmp_path, store):
    valve = Valve()
    script = recipe("Uppy, in a page of https://app.example")
    bundle(tmp_path / "site", script.replace(":8640", f":{valve.port}"))
    profile = tmp_path / "profile"
    profile.mkdir()
    valve.allow(1_500_000)
    with page(tmp_path / "site") as port:
        origin = ("--web-origin", f"http://127.0.0.1:{port}")
        with store(tmp_path, valve, *origin) as first:
            async with browser(profile) as tab:
                await tab.go(f"http://127.0.0.1:{port}/")
                await tab.waitFor("typeof uppy === 'object'")
                await tab.evaluate(UPLOAD % SIZE)
                await bounded(deferToThread(valve.waitUntilHeld), 60)
                valve.cut()
                valve.allow(3_000_000)
                await bounded(deferToThread(valve.waitUntilHeld), 60)
                with ExitStack() as again:
                    if store is receiver:  # the other one forgets all
                        assert await bounded(deferToThread(within, lambda: begun(tmp_path)), 60)
                        first.process.kill()
                        first.process.wait()
                        second = again.enter_context(receiver(tmp_path, valve, *origin))
                    else:
                        valve.cut()
                        second = first
                    valve.allow(float("inf"))
                    assert await tab.waitFor("globalThis.ended", 60) == [3, 0]
                    text = first.output + second.output
    valve.close()
    received = tmp_path / "received"
    assert (received / "läрge 1.bin").read_bytes() == content(1)
    assert (received / "two.bin").read_bytes() == content(2)
    assert (received / "empty").read_bytes() == b""
    names = {"empty", "läрge 1.bin", "two.bin"}
    assert set(os.listdir(received)) == names | ({".connpool"} if store is receiver else set())
    assert "Traceback" not in text
