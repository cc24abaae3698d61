"""
C{--status ENDPOINT}: metrics, health and the status page of a service.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python import usage

from connpool.addresses import Listen
from connpool.errors import StartFailed
from connpool.services.access import Access
from connpool.services.checkers import passwordChecker
from connpool.services.hints import localPlace
from connpool.services.listening import ListeningService, placeOf
from connpool.services.options import ServiceOptions, asNetworks

__all__ = ["MOST_CONNECTIONS", "ObservedService", "StatusOptions", "observed"]

#: Connections to a status listener at once, and from one address: who holds
#: many open shuts nobody else out.
MOST_CONNECTIONS = 128
MOST_PER_ADDRESS = 64


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
        self._checkProtection(listen)

    def _checkProtection(self, listen: Listen) -> None:
        text = listen.description
        if listen.local:
            return
        if self["status-auth"] is not None:
            if not listen.encrypted:
                raise usage.UsageError(
                    f"--status {text}: the password of --status-auth would cross the network "
                    "in clear; write secured:… or ssl:…"
                )
        elif not self["status-allow"] and not listen.certified:
            raise usage.UsageError(
                f"--status {text} can be reached from other machines; say who may look with "
                "--status-allow CIDR or --status-auth, or add interface=127.0.0.1"
            )


class ObservedService(MultiService):
    """
    A service and the listener that shows it.

    The listener is the last to stop, so that a drain can be watched; from its
    beginning on C{/readyz} says no.

    @ivar service: the one that is shown.
    @ivar status: the listener.

    @param watching: services that look at it from time to time.
    @param listen: what the listener listens on.
    @param access: the clients that it lets in.
    """

    _log = Logger()

    def __init__(
        self,
        service: IService,
        watching: Sequence[IService],
        status: ListeningService,
        listen: Listen,
        access: Access,
    ) -> None:
        super().__init__()
        self.service: Any = service
        self.status = status
        self._watching = watching
        self._listen = listen
        self._access = access
        for part in (service, *watching, status):
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
    Wrap a plugin's service.

    @return: C{service}, inside an L{ObservedService} if C{--status} was given.
    """
    if options["status"] is None:
        return service
    # here: without --status nobody waits for twisted.web
    from connpool.observe import HistoryService, Protection, makeSite
    from connpool.observe.tcpstates_read import TCPStates

    access = Access(
        allow=options["status-allow"],
        option="--status-allow",
        maxConnections=MOST_CONNECTIONS,
        maxPerPeer=MOST_PER_ADDRESS,
    )
    protection = Protection(hosts=options["status-host"], checker=options["status-auth"])
    states = TCPStates(reactor, partial(_tcpListeners, service))
    history = HistoryService(reactor, [service])
    site = makeSite(reactor, [service, states], protection, history.history)
    # a page that is watched has no end of its own to wait for
    status = ListeningService(
        reactor, [options["status"]], site, access=access, drainTimeout=0, name="--status"
    )
    return ObservedService(service, [states, history], status, options["status"], access)
