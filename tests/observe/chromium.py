"""
A headless Chromium that a test can drive, over the DevTools protocol on a pipe.
"""

from __future__ import annotations

import base64
import json
import os
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol

from tests.helpers.waiting import bounded, pause, until

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser(ProcessProtocol):
    """
    One browser with one tab, or with more.

    @ivar tab: the one that commands go to.
    @ivar complaints: what the page logged as an error: exceptions, violations
        of its policy, refused loads.
    """

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()
        self.complaints: list[str] = []
        self._waiting: dict[int, Deferred[Any]] = {}
        self._number = 0
        self._buffer = b""
        self._read: set[str] = set()
        self.tab: str | None = None

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD != 4:
            return
        *messages, self._buffer = (self._buffer + data).split(b"\0")
        for message in messages:
            self._message(json.loads(message))

    def _message(self, message: dict[str, Any]) -> None:
        waiting = self._waiting.pop(message.get("id", 0), None)
        if waiting is not None:
            if "error" in message:
                waiting.errback(AssertionError(message["error"]))
            else:
                waiting.callback(message["result"])
        elif message.get("method") == "Page.lifecycleEvent":
            if message["params"]["name"] == "DOMContentLoaded":
                self._read.add(message["params"]["loaderId"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(message["params"]["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded":
            entry = message["params"]["entry"]
            if entry["level"] == "error":
                self.complaints.append(f"{entry['text']} {entry.get('url', '')}")

    def processEnded(self, reason: Any) -> None:
        for waiting in self._waiting.values():
            waiting.errback(reason)
        self.ended.callback(None)

    def command(self, method: str, **parameters: Any) -> Deferred[Any]:
        self._number += 1
        waiting = self._waiting[self._number] = Deferred()
        message = {"id": self._number, "method": method, "params": parameters}
        if self.tab is not None:
            message["sessionId"] = self.tab
        self.transport.writeToChild(3, json.dumps(message).encode() + b"\0")
        return bounded(waiting, 30)

    async def begin(self) -> None:
        """
        Open a tab, and go on in it.
        """
        self.tab = None
        target = await self.command("Target.createTarget", url="about:blank")
        attached = await self.command(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self.tab = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.command(f"{domain}.enable")
        await self.command("Page.setLifecycleEventsEnabled", enabled=True)

    async def look(self, width: int, height: int, scheme: str) -> None:
        """
        Be a window of that size, in C{dark} or C{light}.
        """
        await self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        await self.command(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    async def go(self, url: str) -> None:
        """
        Go to a page, until its document has been read: the answer comes while scripts still
        run in the one before.
        """
        went = await self.command("Page.navigate", url=url)
        assert "errorText" not in went, went
        await until(lambda: went["loaderId"] in self._read)

    async def evaluate(self, expression: str) -> Any:
        """
        @return: the value of a JavaScript expression.
        """
        value, problem = await self._look(expression)
        assert problem is None, problem
        return value

    async def _look(self, expression: str) -> tuple[Any, Any]:
        """
        @return: the value of a JavaScript expression, and why there is none.
        """
        try:
            result = await self.command(
                "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
            )
        except AssertionError as e:
            return None, e  # the page was left meanwhile
        return result["result"].get("value"), result.get("exceptionDetails")

    async def waitFor(self, expression: str, seconds: float = 20.0) -> Any:
        """
        The first true value of C{expression}.  While another page loads there may be
        no body yet to look into: an expression that fails is not true yet.
        """
        end = reactor.seconds() + seconds
        while True:
            value, problem = await self._look(expression)
            if value and problem is None:
                return value
            assert reactor.seconds() < end, f"never true: {expression}: {problem}"
            await pause(0.01)

    async def choose(self, selector: str, *paths: Any) -> None:
        """
        Choose files, or a folder where the field is for one.
        """
        document = await self.command("DOM.getDocument")
        field = await self.command(
            "DOM.querySelector", nodeId=document["root"]["nodeId"], selector=selector
        )
        files = [str(path) for path in paths]
        await self.command("DOM.setFileInputFiles", nodeId=field["nodeId"], files=files)

    async def click(self, selector: str) -> None:
        """
        Click in the middle of an element, script or no script.
        """
        document = await self.command("DOM.getDocument")
        found = await self.command(
            "DOM.querySelector", nodeId=document["root"]["nodeId"], selector=selector
        )
        box = await self.command("DOM.getBoxModel", nodeId=found["nodeId"])
        left, top, _, _, right, bottom, *_ = box["model"]["content"]
        place = {"x": (left + right) / 2, "y": (top + bottom) / 2}
        for kind in ("mousePressed", "mouseReleased"):
            await self.command(
                "Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place
            )

    async def drop(self, *paths: Any) -> None:
        """
        Drop files and folders on the page.
        """
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.command("Input.dispatchDragEvent", type=kind, x=20, y=20, data=data)

    async def accessibility(self) -> list[tuple[str, str]]:
        """
        Role and name of everything that a screen reader meets.
        """
        tree = await self.command("Accessibility.getFullAXTree")
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in tree["nodes"]
            if not node["ignored"]
        ]

    async def screenshot(self, path: str) -> None:
        """
        The whole page, as PNG.
        """
        shot = await self.command("Page.captureScreenshot", captureBeyondViewport=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))


@asynccontextmanager
async def browser(profile: Any, *flags: str) -> Any:
    """
    A fresh browser; it is gone afterwards.

    @param profile: an empty directory.
    @param flags: beside the usual ones.
    """
    protocol = Browser()
    command = ["chromium", *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
    process = reactor.spawnProcess(
        protocol,
        command[0],
        command,
        env={**os.environ, "HOME": str(profile)},
        childFDs={0: "w", 1: "r", 2: "r", 3: "w", 4: "r"},
    )
    try:
        await protocol.begin()
        yield protocol
    finally:
        if not protocol.ended.called:
            process.signalProcess("KILL")
        await until(lambda: protocol.ended.called)
