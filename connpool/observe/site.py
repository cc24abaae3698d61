"""
C{/}, C{/events}, C{/status.json}, C{/metrics}, C{/healthz}, C{/readyz} and C{/balancer}.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.resources import files
from io import BytesIO
from typing import Any

from prometheus_client import generate_latest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from connpool.logonce import LogRarely
from connpool.observe.feed import Feed
from connpool.observe.history import History
from connpool.observe.metrics import makeRegistry
from connpool.observe.overview import Overview
from connpool.observe.protection import Protection
from connpool.observe.sources import findTroubles, isStopping

__all__ = ["WRONG_PASSWORD_SECONDS", "makeSite"]

#: Seconds until a wrong password is answered.  With the listener's limit on
#: connections this bounds guessing, without a table that an attacker can fill.
WRONG_PASSWORD_SECONDS = 2.0

#: Seconds an idle connection is kept; more than Prometheus's usual interval.
IDLE_SECONDS = 75.0

#: Seconds that the end of a connection may take; twisted.web adds 15.
LINGER_SECONDS = 5.0

TEXT = "text/plain; charset=utf-8"
#: The text format that every Prometheus reads.
METRICS = "text/plain; version=0.0.4; charset=utf-8"

Answer = tuple[int, str, bytes]


class _Request(Request):
    """
    A request without a body: twisted.web writes a large one to disk before
    anything of ours is asked.
    """

    _refused = False

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()
        if length != 0:
            self._refused = True
            channel: Any = self.channel
            channel.transport.write(
                b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
            channel.loseConnection()

    def handleContentChunk(self, data: bytes) -> None:
        """
        Forget the content that was already on its way.
        """

    def process(self) -> None:
        if not self._refused:
            super().process()

    def finish(self) -> None:
        channel: Any = self.channel
        super().finish()
        if not channel.persistent:
            # twisted.web stopped its clock: who then takes no part in the close
            # of a TLS connection would keep it
            channel.setTimeout(LINGER_SECONDS)


class _QuietSite(Site):
    """
    No line in the log for each scrape.
    """

    noisy = False
    displayTracebacks = False

    def log(self, request: Any) -> None:
        """
        Nothing.
        """


class _Page:
    """
    The status page, and the policy that lets its own two blocks run and
    nothing else.
    """

    def __init__(self) -> None:
        self.html = files("connpool.observe").joinpath("page.html").read_bytes()
        script, style = (self._hash(tag) for tag in (b"script", b"style"))
        self.policy = (
            f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def _hash(self, tag: bytes) -> str:
        found = re.search(b"<%s>(.*?)</%s>" % (tag, tag), self.html, re.DOTALL)
        assert found is not None
        digest = hashlib.sha256(found[1]).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"


class _Refusals:
    """
    Tells the log about clients that were turned away, at most once a minute for each
    reason.
    """

    _log = Logger()

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._reasons: dict[str, LogRarely] = {}

    def count(self, why: str, request: Any) -> None:
        """
        Note one more.
        """
        if why not in self._reasons:
            self._reasons[why] = LogRarely(partial(self._say, why))
        peer = getattr(request.getClientAddress(), "host", None) or "a unix socket"
        self._reasons[why].happened(peer, self._clock.seconds())

    def _say(self, why: str, peer: str, unsaid: int) -> None:
        more = ", and {n} before it" if unsaid else ""
        self._log.warn("status page: refused {peer}: {why}" + more, peer=peer, why=why, n=unsaid)


class _Status(Resource):
    """
    Every path.
    """

    isLeaf = True
    _log = Logger()

    def __init__(
        self,
        clock: Any,
        roots: Sequence[Any],
        protection: Protection,
        history: History | None,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._roots = roots
        self._protection = protection
        self._page = _Page()
        self._registry = makeRegistry(roots)
        self._overview = overview = Overview(roots, clock, history)
        lasting = {
            "schema": overview.schema,
            "recent": overview.recent,
            "history": overview.history,
        }
        self._feed = Feed(clock, lasting, overview.current)
        self._refusals = _Refusals(clock)
        self._answers: dict[bytes, Callable[[], Awaitable[Answer]]] = {
            b"/": self._showPage,
            b"/status.json": self._showOverview,
            b"/metrics": self._showMetrics,
            b"/healthz": self._showHealth,
            b"/readyz": self._showReadiness,
            b"/balancer": self._showBalance,
        }

    def render(self, request: Any) -> int:
        ended: list[object] = []
        request.notifyFinish().addBoth(ended.append)
        d = Deferred.fromCoroutine(self._answer(request, ended))
        d.addErrback(self._failed, request, ended)
        return NOT_DONE_YET

    def _failed(self, failure: Any, request: Any, ended: list[object]) -> None:
        self._log.failure("cannot answer {path}", failure, path=request.path)
        if not ended:
            self._send(request, (500, TEXT, b"failed; see the log\n"))

    async def _answer(self, request: Any, ended: list[object]) -> None:
        """
        Decide and answer.

        @param ended: not empty once the connection is gone.
        """
        request.setHeader(b"Server", b"connpool")
        request.setHeader(b"Cache-Control", b"no-store")
        request.setHeader(b"X-Content-Type-Options", b"nosniff")
        request.setHeader(b"Referrer-Policy", b"no-referrer")
        request.setHeader(b"Cross-Origin-Resource-Policy", b"same-origin")
        hosts = request.requestHeaders.getRawHeaders(b"host", [])
        if not self._protection.permitsHost(hosts):
            self._refusals.count("unknown host name", request)
            self._send(request, (421, TEXT, b"unknown host name; see --status-host\n"))
            return
        if not await self._identify(request):
            if not ended:
                request.setHeader(b"WWW-Authenticate", b'Basic realm="connpool", charset="UTF-8"')
                self._send(request, (401, TEXT, b"user and password, please\n"))
            return
        if request.method not in {b"GET", b"HEAD"}:
            request.setHeader(b"Allow", b"GET, HEAD")
            self._send(request, (405, TEXT, b"GET only\n"))
        elif request.path == b"/events":
            self._follow(request)
        elif (make := self._answers.get(request.path)) is None:
            self._send(request, (404, TEXT, b"not here\n"))
        else:
            answer = await make()
            if not ended:
                self._send(request, answer)

    async def _identify(self, request: Any) -> bool:
        protection = self._protection
        if protection.checker is None:
            return True
        if not request.getHeader(b"authorization"):
            return False
        if await protection.permitsUser(request.getUser(), request.getPassword()):
            return True
        self._refusals.count("wrong password", request)
        delay: Deferred[None] = deferLater(self._clock, WRONG_PASSWORD_SECONDS)
        request.notifyFinish().addErrback(lambda _: delay.cancel())
        with suppress(CancelledError):
            await delay
        return False

    def _send(self, request: Any, answer: Answer) -> None:
        code, contentType, body = answer
        request.setResponseCode(code)
        request.setHeader(b"Content-Type", contentType.encode())
        request.setHeader(b"Content-Length", b"%d" % len(body))
        policy = self._page.policy if request.path == b"/" else "default-src 'none'"
        request.setHeader(b"Content-Security-Policy", policy.encode())
        request.write(body)
        request.finish()

    def _follow(self, request: Any) -> None:
        if self._feed.full:
            self._send(request, (503, TEXT, b"too many viewers\n"))
            return
        request.setHeader(b"Content-Type", b"text/event-stream")
        # proxies such as nginx would hold the events back
        request.setHeader(b"X-Accel-Buffering", b"no")
        if request.method == b"HEAD":
            request.write(b"")
            request.finish()
            return
        self._feed.join(request)

    async def _showPage(self) -> Answer:
        return 200, "text/html; charset=utf-8", self._page.html

    async def _showOverview(self) -> Answer:
        return 200, "application/json", self._overview.everything() + b"\n"

    async def _showMetrics(self) -> Answer:
        return 200, METRICS, generate_latest(self._registry)

    async def _showHealth(self) -> Answer:
        return 200, TEXT, b"ok\n"

    async def _showReadiness(self) -> Answer:
        troubles = findTroubles(self._roots)
        if troubles:
            return 503, TEXT, "".join(f"{line}\n" for line in troubles).encode()
        return 200, TEXT, b"ready\n"

    async def _showBalance(self) -> Answer:
        # a trouble is told to each sender, with its remedy; here it would cut those who run
        if isStopping(self._roots):
            return 404, TEXT, b"draining\n"
        return 200, TEXT, b"up\n"


def makeSite(
    clock: Any,
    roots: Sequence[Any],
    protection: Protection | None = None,
    history: History | None = None,
) -> Site:
    """
    @param clock: the reactor.
    @param roots: services; they and all below them are shown.
    @param history: of a running L{HistoryService<connpool.observe.HistoryService>};
        without one the page has no curves.
    @return: a factory for HTTP connections.
    """
    return _QuietSite(
        _Status(clock, roots, protection or Protection(), history),
        requestFactory=_Request,
        timeout=IDLE_SECONDS,
        reactor=clock,
    )
