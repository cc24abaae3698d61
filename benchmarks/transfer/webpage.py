"""
Sections about the page: Chromium sends what is dropped on it, and without it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from benchmarks.processes import Failed, Spent, cpuOf, residentOf
from benchmarks.section import Section, Wanted, versus
from benchmarks.setup import Setup
from benchmarks.spread import ratios
from benchmarks.transfer.bytes import PER_FILE, started
from benchmarks.transfer.others import Nginx
from benchmarks.transfer.ours import Ours
from benchmarks.transfer.sources import FileSource, TreeSource
from benchmarks.transfer.tools import COLUMNS, Place, Tool, net

__all__ = ["webFolder", "webPage"]

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
)
_SECONDS = 600.0
_LOOK_SECONDS = 0.01
_LARGE_MIB = 1024
#: A field of a page that is not ours, in which a file or a folder is chosen.
_FIELD = """(() => {
  const field = document.createElement("input");
  field.type = "file";
  field.id = "sent";
  field.webkitdirectory = %s;
  document.body.append(field);
})()"""
#: PUT what was chosen: one XHR, or three fetches at once as the page has.
_XHR = """new Promise((done, failed) => {
  const xhr = new XMLHttpRequest(), [file] = document.getElementById("sent").files;
  xhr.open("PUT", "/" + file.name);
  xhr.onload = () => xhr.status < 300 ? done(true) : failed(xhr.status);
  xhr.onerror = failed;
  xhr.send(file);
})"""
_FETCHES = """(async () => {
  const files = [...document.getElementById("sent").files];
  const send = async () => {
    for (let file; file = files.shift();) {
      const answer = await fetch("/" + file.webkitRelativePath, {method: "PUT", body: file});
      if (!answer.ok) throw answer.status;
    }
  };
  await Promise.all([send(), send(), send()]);
  return true;
})()"""

#: Send one file as the page does, by PATCHes of 32 MiB, without a digest.
_PATCHES = """(async () => {
  const [file] = document.getElementById("sent").files, least = {"Tus-Resumable": "1.0.0"};
  const ask = async (url, method, headers, body) => {
    const answer = await fetch(url, {method, body, headers: {...least, ...headers}});
    if (!answer.ok) throw answer.status;
    return answer;
  };
  const made = await ask("/", "POST", {
    "Upload-Length": file.size, "Upload-Metadata": "filename " + btoa(file.name)});
  const url = new URL(made.headers.get("Location"), made.url);
  const read = at => file.slice(at, at + (32 << 20)).arrayBuffer();
  for (let at = 0, next = read(0); at < file.size;) {
    const body = await next;
    next = read(at + body.byteLength);
    await ask(url, "PATCH", {
      "Content-Type": "application/offset+octet-stream", "Upload-Offset": at}, body);
    at += body.byteLength;
  }
  return true;
})()"""


class Chromium:
    """
    A headless Chromium with one tab, over the DevTools protocol on a pipe.
    """

    def __enter__(self) -> Self:
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()
        # the browser reads descriptor 3 and writes to 4
        script = f'exec chromium "$@" 3<&{reads} 4>&{writes}'
        words = [*_FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self.process = subprocess.Popen(
            ["sh", "-c", script, "sh", *words],
            pass_fds=(reads, writes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(reads)
        os.close(writes)
        self._buffer, self._number, self._tab = b"", 0, ""
        target = self._command("Target.createTarget", url="about:blank")["targetId"]
        attached = self._command("Target.attachToTarget", targetId=target, flatten=True)
        self._tab = attached["sessionId"]
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _command(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._tab:
            message["sessionId"] = self._tab
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self._number:
                if "error" in found:
                    raise Failed(f"Chromium: {found['error']}")
                return found["result"]

    def _read(self) -> Any:
        while b"\0" not in self._buffer:
            data = os.read(self._from, 1 << 16)
            if not data:
                raise Failed("Chromium has ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        """
        Return the value of a JavaScript expression, once it is there.
        """
        result = self._command(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise Failed(f"Chromium: {result['exceptionDetails']}")
        return result["result"].get("value")

    def waitFor(self, expression: str) -> None:
        """
        Wait until C{expression} is true.
        """
        # looked at in the page: a question by the pipe costs as much as a small file
        self.evaluate(
            "new Promise((done, failed) => {"
            f"const end = Date.now() + {_SECONDS * 1000};"
            f"const look = () => ({expression}) ? done(true) : Date.now() > end ? failed('never')"
            f" : setTimeout(look, {_LOOK_SECONDS * 1000});"
            "look(); })"
        )

    def visit(self, url: str) -> None:
        """
        Load a page.
        """
        self._command("Page.navigate", url=url)
        end = time.monotonic() + _SECONDS
        loaded = f"location.href === '{url}' && document.readyState === 'complete'"
        while not self.evaluate(loaded):
            if time.monotonic() > end:
                raise Failed(f"Chromium does not load {url}")
            time.sleep(0.05)

    def choose(self, selector: str, path: Path) -> None:
        """
        Choose a file or a folder.
        """
        root = self._command("DOM.getDocument")["root"]["nodeId"]
        field = self._command("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._command("DOM.setFileInputFiles", nodeId=field, files=[str(path)])


class _InChromium(Tool):
    """
    A receiver to which Chromium sends.

    @cvar script: sends what was chosen.
    """

    script = _XHR

    def __init__(self, name: str, place: Place, chromium: Chromium) -> None:
        super().__init__(name, place)
        self.chromium = chromium

    def send(self, path: Path) -> tuple[Spent, Spent]:
        assert self.receiver is not None
        pid, browser = self.receiver.pid, self.chromium.process.pid
        self.chromium.visit(f"http://127.0.0.1:{self.port}/")
        self.ready(path)
        sending, receiving, began = cpuOf(browser), cpuOf(pid), time.perf_counter()
        self.drop(path)
        seconds = time.perf_counter() - began
        return (
            Spent(seconds, cpuOf(browser) - sending, residentOf(browser)),
            Spent(0.0, cpuOf(pid) - receiving, residentOf(pid)),
        )

    def ready(self, path: Path) -> None:
        """
        Have the page ready for C{path}.
        """
        self.chromium.evaluate(_FIELD % str(path.is_dir()).lower())

    def drop(self, path: Path) -> None:
        """
        Choose what is sent, and send it.
        """
        self.chromium.choose("#sent", path)
        # a folder is looked through first
        self.chromium.waitFor('document.getElementById("sent").files.length')
        self.chromium.evaluate(self.script)


class _NginxXHR(_InChromium, Nginx):
    """
    nginx, to which a page PUTs a file.
    """

    needs = ("nginx", "chromium")

    def prepare(self) -> None:
        (self.root / "index.html").write_text("<!doctype html><title>PUT</title><body></body>")


class _Fetches(_InChromium, Ours):
    """
    Our receiver, to which a page PUTs file after file, three at once.
    """

    needs = ("chromium",)
    script = _FETCHES

    def __init__(self, name: str, place: Place, chromium: Chromium) -> None:
        super().__init__(name, place, chromium)
        self.options = ()


class _Patches(_Fetches):
    """
    Our receiver, to which a page sends a file in pieces, without a digest.
    """

    script = _PATCHES


class _Page(_Fetches):
    """
    Our receiver, and its own page.
    """

    def ready(self, path: Path) -> None:
        self.chromium.waitFor("typeof rows === 'object' && !rows.length")

    def drop(self, path: Path) -> None:
        self.chromium.choose("#folder" if path.is_dir() else "#files", path)
        self.chromium.waitFor("rows.length && !tally.waiting && !tally.sending")
        failed = self.chromium.evaluate("rows.find(row => row.state !== 'done')?.said")
        unverified = self.chromium.evaluate("rows.find(row => !/verified/.test(row.said))?.said")
        if failed or unverified:
            raise Failed(f"{self.name}: {failed or unverified}")


@contextmanager
def webPage(setup: Setup) -> Iterator[Section]:
    """
    One large file in memory, from Chromium.
    """
    size = min(setup.large, _LARGE_MIB)
    with setup.work(setup.memory) as work, ExitStack() as stack:
        place = Place(work, FileSource(work / "file", size << 20), FileSource(work / "tiny", 1))
        chromium = Chromium()
        theirs = _NginxXHR("nginx PUT, XHR", place, chromium)
        pieces = _Patches("ours, pieces, no digest", place, chromium)
        ours = _Page("ours, the page, SHA-256", place, chromium)
        if ours.missing() is None:
            stack.enter_context(chromium)
        bars = [versus(ours.name, theirs.name, 0.7, net)]
        title = f"One file of {size:,} MiB in memory, from Chromium"
        yield Section(title, started(stack, [theirs, pieces, ours]), COLUMNS, bars)


@contextmanager
def webFolder(setup: Setup) -> Iterator[Section]:
    """
    A folder of small files in memory, from Chromium.
    """
    count = max(setup.small // 10, 1)
    with setup.work(setup.memory) as work, ExitStack() as stack:
        place = Place(work, TreeSource(work / "tree", count), TreeSource(work / "tiny", 1))
        chromium = Chromium()
        plain = _Fetches("ours, fetch of PUTs", place, chromium)
        page = _Page("ours, the page, SHA-256", place, chromium)
        if page.missing() is None:
            stack.enter_context(chromium)
        bars = [
            Wanted(
                "time of the page / of plain PUTs",
                *((page.name, plain.name), lambda a, b: ratios(net(a), net(b)), 1.5),
                atMost=True,
                unit="x",
            )
        ]
        title = f"A folder of {count:,} files of 4 KiB in memory, from Chromium"
        yield Section(title, started(stack, [plain, page]), PER_FILE, bars)
