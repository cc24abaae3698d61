"""
HTTP at a receiver: its options, and the clients that it is open to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from twisted.python import usage

from connpool.addresses import Listen, clientOf
from connpool.addresses.hosts import isHost
from connpool.errors import Forbidden, TransferError, WrongSetting
from connpool.interfaces import IAuthenticator
from connpool.services.access import Words
from connpool.services.options import ServiceOptions
from connpool.transfer.receive.reception import Reception
from connpool.transfer.receive.sniffer import (
    HTTP_APPLICATIONS,
    HTTP_PATIENCE_SECONDS,
    HTTP_SIGNATURES,
    Choice,
    Refusal,
)
from connpool.transfer.web.settings import WebCounts, WebSettings

__all__ = ["WebEntrance", "WebOptions"]

_ORIGIN = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_URL = re.compile(r"(https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)(/[!-~]*)?")


class WebOptions(ServiceOptions):
    """
    The options of the web door, for a plugin's C{Options} to inherit.
    """

    optParameters = [
        ["web-url", None, None, "URL of the receiver as clients see it, behind a proxy"],
    ]
    optFlags = [
        ["web", None, "Take HTTP from elsewhere too, not only directly on this machine"],
        ["no-web", None, "Take no HTTP"],
        ["web-download", None, "Give files to identities with read = true by HTTP, too"],
        ["web-sha256", None, "Compute the SHA-256 of every file that comes by HTTP"],
    ]

    def opt_web_host(self, name: str) -> None:
        """
        Name under which clients ask for the receiver, beside this machine's own (repeatable).
        """
        self.collect("web-host", name)

    def opt_web_origin(self, origin: str) -> None:
        """
        Web site whose pages may send, https://HOST, or * with --auth (repeatable).
        """
        self.collect("web-origin", origin)

    @property
    def webKeywords(self) -> dict[str, Any]:
        """
        The arguments of a service that these options stand for.

        @raise UsageError: for options that exclude one another.
        """
        if self["web"] and self["no-web"]:
            raise usage.UsageError("--web and --no-web exclude one another; give one of them")
        return {
            "web": bool(self["web"]) if self["web"] or self["no-web"] else None,
            "webHosts": self.get("web-host", ()),
            "webOrigins": self.get("web-origin", ()),
            "webUrl": self["web-url"],
            "webSha256": bool(self["web-sha256"]),
            "webDownload": bool(self["web-download"]),
        }


def _settings(
    hosts: Sequence[str], origins: Sequence[str], url: str | None, sha256: bool, download: bool
) -> WebSettings:
    """
    @raise WrongSetting: for a value that is none.
    """
    for host in hosts:
        if not isHost(host):
            raise WrongSetting(f"--web-host: {host!r} is not a name; write it without the port")
    for origin in origins:
        found = _ORIGIN.fullmatch(origin)
        own = {"http": ":80", "https": ":443"}
        if origin != "*" and (found is None or found[3] == own[found[1]]):
            raise WrongSetting(
                f"--web-origin: {origin!r} is not an origin; write it as browsers do: https://HOST "
                "or https://HOST:PORT, in lower case, without a path and without the usual port"
            )
    if (url is not None and _URL.fullmatch(url) is None) or set(url or "") & set("?#"):
        raise WrongSetting(
            f"--web-url: {url!r} is not the URL of a receiver; write https://HOST/ or "
            "https://HOST/PATH/"
        )
    return WebSettings(
        hosts=tuple(hosts),
        origins=tuple(origins),
        url="" if url is None else url.rstrip("/") + "/",
        sha256=sha256,
        download=download,
    )


class WebEntrance:
    """
    The entrance to a receiver's web door.  The door itself is loaded with the first request.

    @param reactor: for the door.
    @param web: C{True} to take HTTP from everywhere, C{False} from nowhere, L{None} from
        clients that are connected directly on this machine.
    @param credentials: senders are asked who they are.
    @param reading: somebody may read.
    @raise WrongSetting: for values that do not go together; one line.
    """

    def __init__(
        self,
        reactor: Any,
        web: bool | None,
        hosts: Sequence[str],
        origins: Sequence[str],
        url: str | None,
        sha256: bool,
        download: bool = False,
        *,
        credentials: bool,
        reading: bool = False,
    ) -> None:
        self._reactor = reactor
        self._everywhere = bool(web)
        self._settings = _settings(hosts, origins, url, sha256, download)
        if web is False and self._settings != WebSettings():
            raise WrongSetting("--web-… options are about HTTP; not with --no-web")
        if download and not reading:
            raise WrongSetting(
                "--web-download: nobody may read; write read = true for somebody in --identities"
            )
        if "*" in origins and not credentials:
            raise WrongSetting(
                "--web-origin *: every page that somebody here visits could send; ask for a "
                "password with --auth, or list the sites"
            )
        self.counts = WebCounts()
        self._reception: Reception | None = None
        self._authenticator: IAuthenticator | None = None
        self._door: Any = None
        #: the ways in
        self.choices = [
            Choice(HTTP_SIGNATURES, self._build, HTTP_PATIENCE_SECONDS, HTTP_APPLICATIONS)
        ] * (web is not False)

    def words(self, usual: bytes, status: HTTPStatus, why: TransferError) -> Words:
        """
        Return the answer to refused peers: C{usual} to those who do not speak HTTP, or if it is
        spoken nowhere.
        """
        return (
            Words(usual, HTTP_SIGNATURES, webRefusal(status, why)) if self.choices else Words(usual)
        )

    def start(self, reception: Reception, authenticator: IAuthenticator | None) -> None:
        """
        Lead to C{reception} from now on.
        """
        self._reception, self._authenticator, self._door = reception, authenticator, None

    async def stop(self) -> None:
        """
        Pause what goes on in later requests.
        """
        if self._door is not None:
            await self._door.close()

    def opens(self, listen: Listen) -> bool:
        """
        Tell whether clients on this machine may use HTTP at a listener.
        """
        return bool(self.choices) and (self._everywhere or listen.local)

    def _build(self, transport: Any) -> Any:
        if not (self._everywhere or clientOf(transport).local):
            return WebRefusal()
        if self._door is None:
            from connpool.transfer.web.door import WebDoor

            assert self._reception is not None
            self._door = WebDoor(
                *(self._reactor, self._reception, self._authenticator),
                *(self._settings, self.counts),
            )
        return self._door.build(transport)


def webRefusal(status: HTTPStatus, why: TransferError) -> bytes:
    """
    Return an answer to HTTP that needs neither a request nor a door.
    """
    document = {"title": status.phrase, "status": status, "detail": str(why), "code": why.code}
    body = json.dumps(document).encode() + b"\n"
    return (
        b"HTTP/1.1 %d %b\r\nContent-Type: application/problem+json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (status, status.phrase.encode(), len(body), body)
    )


class WebRefusal(Refusal):
    """
    The answer to HTTP at a receiver that does not take it from there.
    """

    answer = webRefusal(
        HTTPStatus.FORBIDDEN,
        Forbidden("HTTP is not taken from this address; see --web of the receiver"),
    )
