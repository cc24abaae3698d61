"""
C{--status ENDPOINT}: metrics, health and the status page of a service.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python import usage

from connpool.addresses import Listen, Networks
from connpool.addresses.hosts import isHost
from connpool.errors import StartFailed, WrongSetting
from connpool.services.access import Access
from connpool.services.checkers import passwordChecker
from connpool.services.hints import localPlace
from connpool.services.listening import ListeningService, placeOf, readListen
from connpool.services.options import ServiceOptions, asNetworks

__all__ = ["MOST_CONNECTIONS", "ObservedService", "StatusOptions", "observed"]

#: Connections to a status listener at once, and from one address: who holds
#: many open shuts nobody else out.
MOST_CONNECTIONS = 128
MOST_PER_ADDRESS = 64


#: Where the page is if nothing else is said.
DEFAULT_LISTEN = "tcp:8690:interface=127.0.0.1"


class StatusOptions(ServiceOptions):
    """
    The options of L{observed}, for a plugin's C{Options} to inherit: first
    in its list of bases.
    """

    def opt_status(self, endpoint: str) -> None:
        """
        Serve metrics, health and a page here: tcp:8690:interface=127.0.0.1.
        """
        self.once("status", endpoint)

    def opt_status_allow(self, network: str) -> None:
        """
        Show them to this network only: CIDR, an address, or "any" (repeatable).
        """
        self.collect("status-allow", network)

    def opt_status_auth(self, checker: str) -> None:
        """
        Ask for a name and password: file:PATH (lines of name:password).
        """
        self.once("status-auth", checker)

    def opt_status_host(self, name: str) -> None:
        """
        Another name under which this machine is asked for them (repeatable).
        """
        if not isHost(name):
            raise usage.UsageError(
                f"--status-host: {name!r} is not a name; write it without the port"
            )
        self.collect("status-host", name)

    def postOptions(self) -> None:
        super().postOptions()
        for name, default in (
            ("status", None),
            ("status-auth", None),
            ("status-allow", []),
            ("status-host", []),
        ):
            self.setdefault(name, default)
        self.convert("status-allow", asNetworks)
        if self["status"] is None:
            for name in ("status-auth", "status-allow", "status-host"):
                if self[name]:
                    raise usage.UsageError(f"--{name} is about --status; give that too")
            return
        self["status"] = listen = self.asListen("status", self["status"])
        if self["status-auth"] is not None:
            self["status-auth"] = passwordChecker("status-auth", self["status-auth"])
        try:
            refuseExposure(listen, self["status-allow"], self["status-auth"])
        except WrongSetting as e:
            raise usage.UsageError(str(e)) from None


def refuseExposure(listen: Listen, allow: Networks, checker: Any) -> None:
    """
    Refuse a page that everybody can see by accident.

    @raise WrongSetting: with the remedy, one line.
    """
    text = listen.description
    if listen.local:
        return
    if checker is not None:
        if not listen.encrypted:
            raise WrongSetting(
                f"--status {text}: the password of --status-auth would cross the network "
                "in clear; write secured:… or ssl:…"
            )
    elif not allow and not listen.certified:
        raise WrongSetting(
            f"--status {text} can be reached from other machines; say who may look with "
            f"--status-allow CIDR or --status-auth{listen.makeLocal}"
        )


class ObservedService(MultiService):
    """
    A service and the listener that shows it.

    The listener is the last to stop, so that a drain can be watched; from its
    beginning on C{/readyz} says no.

    @ivar service: the one that is shown.
    @ivar status: the listener.

    @param reactor: also the clock.
    @param service: what is shown, with all below it.  It becomes a child.
    @param listen: what the page listens on; one that other machines can reach wants
        C{allow}, or a C{checker} behind TLS.
    @param allow: networks that may look; empty means everybody.
    @param hosts: further names under which this machine is asked for the page.
    @param checker: of names and passwords; L{None} to ask for none.
    @raise WrongSetting: for a page that everybody could see by accident; one line.
    @raise AddressError: for a description or network that is none; one line.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        service: IService,
        listen: Listen | str = DEFAULT_LISTEN,
        *,
        allow: Networks | Sequence[str] = (),
        hosts: Collection[str] = (),
        checker: ICredentialsChecker | None = None,
    ) -> None:
        # here: without the page nobody waits for twisted.web
        from connpool.observe import HistoryService, Protection, makeSite
        from connpool.observe.tcpstates_read import TCPStates

        super().__init__()
        self._listen = readListen(listen)
        self._access = Access(
            allow=allow,
            option="--status-allow",
            maxConnections=MOST_CONNECTIONS,
            maxPerPeer=MOST_PER_ADDRESS,
        )
        refuseExposure(self._listen, self._access.allow, checker)
        self.service: Any = service
        states = TCPStates(reactor, partial(_tcpListeners, service))
        history = HistoryService(reactor, [service])
        self._watching = (states, history)
        site = makeSite(
            reactor,
            [service, states],
            Protection(hosts=hosts, checker=checker),
            history.history,
        )
        # a page that is watched has no end of its own to wait for
        self.status = ListeningService(
            reactor, [self._listen], site, access=self._access, drainTimeout=0, name="--status"
        )
        for part in (service, *self._watching, self.status):
            part.setServiceParent(self)

    def privilegedStartService(self) -> None:
        try:
            super().privilegedStartService()
        except StartFailed:
            # close the ones that did open; not every service can be stopped before a start
            self.stopService().addErrback(lambda _: None)
            raise

    @property
    def _where(self) -> str:
        """
        The page's place, as this machine reaches it.
        """
        host: Any = self.status.getHost()
        if "proxied" in self._listen.wrappers or not hasattr(host, "port"):
            return placeOf(host)
        return localPlace(host, self._access)

    def startService(self) -> None:
        super().startService()
        self._log.info("status page at {where}", where=self._where)

    def stopService(self) -> Deferred[None]:
        self.running = 0
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        try:
            await maybeDeferred(self.service.stopService)
        finally:
            for each in self._watching:
                await maybeDeferred(each.stopService)
            await self.status.stopService()


def _tcpListeners(service: Any) -> dict[str, Collection[int]]:
    """
    Label to TCP ports of every listener under C{service} that listens now.
    """
    from connpool.observe.sources import walk
    from connpool.observe.tcpstates_read import portsOf

    found: dict[str, Collection[int]] = {}
    for label, each in walk([service]):
        if isinstance(each, ListeningService) and each.listens:
            found[label] = portsOf(each)
    return {label: ports for label, ports in found.items() if ports}


def observed(options: StatusOptions, service: IService, reactor: Any) -> IService:
    """
    Return what C{makeService} of a plugin returns: C{service}, inside an
    L{ObservedService} if C{--status} was given.
    """
    if options["status"] is None:
        return service
    return ObservedService(
        reactor,
        service,
        options["status"],
        allow=options["status-allow"],
        hosts=options["status-host"],
        checker=options["status-auth"],
    )
