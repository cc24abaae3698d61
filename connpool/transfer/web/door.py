"""
The web door: connections, the gate, and the resource for each request.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from connpool.addresses.hosts import hostOf, withOwnHosts
from connpool.errors import StoreError, TransferError
from connpool.interfaces import IAuthenticator
from connpool.logonce import LogRarely
from connpool.transfer.receive.reception import Reception
from connpool.transfer.web.answers import Answer, Fields, Problem, problem
from connpool.transfer.web.channel import WebChannel
from connpool.transfer.web.download import download, showDirectory
from connpool.transfer.web.form import storeForm
from connpool.transfer.web.gate import Gate, Sender
from connpool.transfer.web.head import METHODS, Head
from connpool.transfer.web.origin import Origins, originOf
from connpool.transfer.web.page import Page
from connpool.transfer.web.put import put
from connpool.transfer.web.request import Request, Resource
from connpool.transfer.web.settings import WebCounts, WebSettings
from connpool.transfer.web.target import Kind, parseTarget
from connpool.transfer.web.tus import isTus, resume, tusOptions
from connpool.transfer.web.uploads import Uploads

__all__ = ["WebDoor"]

#: For methods that mean something elsewhere, or with an option.
_REMEDIES = {
    "GET": "; files are given out with --web-download of the receiver",
    "POST": "; a form or an upload goes to a directory: end its URL with /",
}
_OF_UPLOADS = ("HEAD", "GET", "PATCH", "DELETE", "PUT", "POST")


class WebDoor:
    """
    Makes channels for connections that begin with an HTTP request.  Without an authenticator
    everybody may send, as C{anonymous}.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        reception: Reception,
        authenticator: IAuthenticator | None = None,
        settings: WebSettings | None = None,
        counts: WebCounts | None = None,
    ) -> None:
        self._settings = settings = settings or WebSettings()
        self._clock = clock
        self._reception = reception
        self._counts = counts or WebCounts()
        self._gate = Gate(clock, reception, authenticator, settings.url.startswith("https://"))
        own = [originOf(settings.url)] if settings.url else []
        hosts = [*settings.hosts, *(hostOf(each.partition("://")[2]) for each in own)]
        self._origins = Origins(withOwnHosts(hosts), frozenset({*settings.origins, *own}))
        self._uploads = uploads = Uploads(reception, clock)
        page = Page(uploads.supported).answer
        self._resume: Resource = partial(resume, uploads)
        # PUT without a name is told what is wrong with that
        self._resources: dict[Kind, dict[str, Resource]] = {
            Kind.ROOT: {"GET": page, "HEAD": page, "POST": storeForm, "PUT": put},
            Kind.DIRECTORY: {"POST": storeForm, "PUT": put},
            Kind.NAME: {"PUT": put},
            Kind.UPLOAD: dict.fromkeys(_OF_UPLOADS, self._resume),
        }
        if settings.download:
            self._resources[Kind.NAME] |= dict.fromkeys(("GET", "HEAD"), download)
            self._resources[Kind.DIRECTORY] |= dict.fromkeys(("GET", "HEAD"), showDirectory)
            self._resources[Kind.LIST] = dict.fromkeys(("GET", "HEAD"), showDirectory)
        self._logs: dict[str, LogRarely] = {}

    def build(self, transport: Any) -> WebChannel:
        """
        Make the protocol of a connection.
        """
        sender = Sender(transport)
        self._counts.connections += 1
        return WebChannel(
            *(self._clock, sender, self._counts),
            lambda: self._reception.quotas.deadline(sender.identity),
            lambda head, channel: Deferred.fromCoroutine(self._answer(head, channel, sender)),
            lambda why: self._refuse(why, sender),
        )

    def close(self) -> Deferred[Any]:
        """
        Let go of the uploads that go on in later requests.
        """
        return self._uploads.close()

    async def _answer(
        self, head: Head, channel: WebChannel, sender: Sender
    ) -> tuple[Answer, Fields]:
        """
        Return the answer to a request, and the fields that depend on the request's origin.
        """
        shared: Fields = ()
        request = None
        try:
            target = parseTarget(head.method, head.target)
            self._origins.checkHost(head, target)
            shared = self._origins.shared(head)
            self._gate.checkPlace(head, sender)
            self._origins.checkOrigin(head)
            if head.method == "OPTIONS":
                return self._options(head), shared
            resource = self._resourceFor(head, target.kind)
            # the page tells nothing, and asks for a password itself
            known = target.kind is not Kind.ROOT or head.method not in {"GET", "HEAD"}
            if known:
                await self._gate.identify(head, sender)
            request = Request(
                *(head, target, sender, channel.receive, channel.end),
                *(self._reception, self._settings),
            )
            return await resource(request), shared
        except TransferError as e:
            if request is None or isinstance(e, Problem):
                return self._refuse(e, sender, head.wantsPage), shared
            # the reception has logged it
            conditional = b"*" in head.all(b"if-none-match")
            return problem(e, head.wantsPage, conditional=conditional), shared
        except Exception as e:
            self._log.failure("answering a request of {peer} failed", peer=sender.peer)
            return problem(StoreError(f"internal error: {type(e).__name__}")), shared

    def _refuse(self, why: TransferError, sender: Sender, page: bool = False) -> Answer:
        """
        Answer a refusal that is about no file, and log it unless there are many like it.
        """
        code = why.code
        if code not in self._logs:

            def say(text: str, unsaid: int) -> None:
                more = f"; {unsaid} more with this code since the last such line" if unsaid else ""
                self._log.info("{text}", text=text + more)

            self._logs[code] = LogRarely(say)
        text = f"refused a request from {sender.peer}: {code}: {why}"
        self._logs[code].happened(text, self._clock.seconds())
        return problem(why, page)

    def _options(self, head: Head) -> Answer:
        fields = self._origins.preflight(head)
        if not fields:
            offered = tusOptions(self._reception.policy) if self._uploads.supported else ()
            fields = [("Allow", ", ".join(METHODS)), *offered]
        return Answer(204, fields)

    def _resourceFor(self, head: Head, kind: Kind) -> Resource:
        resources = self._resources.get(kind)
        if resources is None:
            raise Problem(404, "there is nothing of this name", "expired")
        resource = resources.get(head.method)
        if resource is None:
            allow = ", ".join([*resources, "OPTIONS"])
            why = f"here {head.method} means nothing; {allow} do{_REMEDIES.get(head.method, '')}"
            raise Problem(405, why, "unsupported", fields=[("Allow", allow)])
        return self._resume if resource is storeForm and isTus(head) else resource
