"""
C{twistd udpecho}: echo, irtt and STAMP on UDP, echo on TCP.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import IService, MultiService
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python import usage
from zope.interface import implementer

from connpool.addresses import Listen, joinHostPort, tokenize
from connpool.datagram import (
    NOTHING,
    RULES,
    AnsweringPort,
    DatagramInfo,
    DatagramStats,
    Limits,
    Policy,
    TCPEchoFactory,
    Unwrap,
    makeResponder,
    openPorts,
    shared,
)
from connpool.errors import AddressError, StartFailed, WrongSetting
from connpool.interfaces import IDatagramResponder, IStatsSource
from connpool.proxyprotocol import DatagramHeaders
from connpool.proxyprotocol.strings import parseDatagramHeaders
from connpool.services.access import Access
from connpool.services.hints import commandLine, localPlace
from connpool.services.listening import (
    ListeningService,
    ShownSource,
    describeListenError,
    readListen,
)
from connpool.services.options import AccessOptions, asCount, asNetworks, asSeconds, defaultOf
from connpool.services.startfailure import failStart
from connpool.services.status import StatusOptions, observed

__all__ = ["DatagramService", "Options", "UDPEcho", "makeService"]

#: Defaults, of the service as of its options.
DEFAULT_LISTEN = ("udp:8641:interface=127.0.0.1",)
DEFAULT_PROTOCOL = "auto"
LOG_INTERVAL_SECONDS = 60.0
NAME = "udpecho"


class Options(StatusOptions, AccessOptions):
    pluginName = "udpecho"
    defaultListen = DEFAULT_LISTEN
    takesDatagrams = True
    synopsis = "[options]"
    longdesc = (
        "Answers datagrams, so that others can measure how they get through: "
        "connpool ping HOST:PORT. Stream endpoints in --listen echo over TCP."
    )

    optParameters = [
        [
            "protocol",
            "p",
            DEFAULT_PROTOCOL,
            "What answers: NAME or NAME:ARGUMENTS; --protocols lists them.",
        ],
        [
            "rate",
            None,
            defaultOf(Policy, "rate"),
            "Answers per second to one IPv4 /24 or IPv6 /64.",
        ],
        ["burst", None, defaultOf(Policy, "burst"), "Answers at once to one of these networks."],
        ["max-rate", None, defaultOf(Policy, "maxRate"), "Answers per second to all."],
        [
            "log-interval",
            None,
            f"{LOG_INTERVAL_SECONDS:g}",
            "Seconds between summaries of what was refused.",
        ],
        ["name", None, NAME, "Name in logs and metrics."],
    ]
    optFlags = [
        ["protocols", None, "List what --protocol takes, and exit."],
        ["no-trust-loopback", None, "Apply rates and the loop rule to loopback too."],
    ]

    def opt_trust(self, network: str) -> None:
        """
        Count but do not limit this network: CIDR or an address (repeatable;
        loopback is trusted anyway).
        """
        self.collect("trust", network)

    def opt_relax(self, rule: str) -> None:
        """
        Switch a good-neighbour rule off; see docs/datagram.rst (repeatable).
        """
        self.collect("relax", rule)

    def postOptions(self) -> None:
        super().postOptions()
        if self["protocols"]:
            from connpool.datagram import responderFactories

            lines = [f"{each.name:10} {each.description}" for each in responderFactories()]
            print("\n".join(lines))  # noqa: T201 - asked for by --protocols
            raise SystemExit(0)
        self.setdefault("trust", [])
        self.convert("trust", asNetworks)
        for name in ("rate", "burst", "max-rate"):
            self.convert(name, asCount)
        self.convert("log-interval", asSeconds)
        self.pingOptions = _pingOptions(self["protocol"])
        self.convert("protocol", makeResponder)
        self.setdefault("relax", [])
        unknown = [rule for rule in self["relax"] if rule not in RULES]
        if unknown:
            raise usage.UsageError(f"--relax: {unknown[0]!r} is not one of {', '.join(RULES)}")
        self.attempt(self.make)

    def make(self, reactor: Any) -> UDPEcho:
        return UDPEcho(
            reactor,
            listen=self["listen"],
            protocol=self["protocol"],
            policy=Policy(
                allow=self["allow"],
                deny=self["deny"],
                trusted=self["trust"],
                trustLoopback=not self["no-trust-loopback"],
                rate=self["rate"],
                burst=self["burst"],
                maxRate=self["max-rate"],
                relax=frozenset(self["relax"]),
            ),
            access=self.access,
            logInterval=self["log-interval"],
            name=self["name"],
            pingOptions=self.pingOptions,
        )


def _checkDatagrams(listen: Listen) -> None:
    """
    @raise WrongSetting: for a C{udp:} description that cannot be served.
    """
    if listen.datagram and "secured" in listen.wrappers:
        raise WrongSetting(
            f"--listen: {listen.description!r}: there is no TLS over UDP here; "
            "use udp: without secured:"
        )
    try:
        _headersOf(listen)
    except AddressError as e:
        raise WrongSetting(f"--listen: {listen.description!r}: {e}") from None


def _pingOptions(protocol: str) -> tuple[str, ...]:
    """
    @param protocol: as after C{--protocol}.
    @return: the options with which C{connpool ping} speaks it.
    """
    name, _, arguments = protocol.partition(":")
    if name not in {"irtt", "stamp"}:
        return ()
    key = tokenize(arguments)[1].get("key-file") if arguments else None
    return ("--protocol", name, *(("--key-file", key) if key else ()))


def _headersOf(listen: Listen) -> DatagramHeaders | None:
    """
    Read the keywords of C{proxied:udp:}: they take datagrams out of a proxy's
    envelope.

    @raise AddressError: for a mistake in it.
    """
    if "proxied" not in listen.wrappers:
        return None
    return parseDatagramHeaders(dict(listen.keywords))


def _unwrapper(headers: DatagramHeaders) -> Unwrap:
    """
    The same, as the port wants it.
    """

    def unwrap(datagram: bytes, info: DatagramInfo) -> bytes | None:
        found = headers.unwrap(datagram, info.host)
        if found is None:
            return None
        if found.client is not None:
            family = socket.AF_INET6 if ":" in found.client.host else socket.AF_INET
            info.asker(socket.inet_pton(family, found.client.host), found.client.port)
        return found.payload

    return unwrap


@implementer(IStatsSource)
class DatagramService(MultiService):
    """
    Answers on several C{udp:} descriptions.

    Everything is bound in C{privilegedStartService}; if one cannot be, none
    stays open.  It can be started again after a stop.

    @param pingOptions: what C{connpool ping} needs to be understood.
    """

    kind = "datagram"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        listens: Sequence[Listen],
        responder: IDatagramResponder,
        policy: Policy | None = None,
        *,
        logInterval: float = LOG_INTERVAL_SECONDS,
        name: str = "datagram",
        pingOptions: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.name: str = name
        self.responder = responder
        self.limits = Limits(policy or Policy())
        self._reactor = reactor
        self._listens = listens
        self._pingOptions = pingOptions
        self._ports: list[AnsweringPort] = []
        self._past = NOTHING
        self._summarised = NOTHING
        self._logInterval = logInterval
        self._looping: LoopingCall | None = None

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        self._open()

    def startService(self) -> None:
        if not self._ports:
            # twist starts services without the privileged step
            self._open()
        super().startService()
        self._looping = LoopingCall(self._summarise)
        self._looping.clock = self._reactor
        self._looping.start(self._logInterval, now=False)

    def _open(self) -> None:
        for old in list(self):
            old.disownServiceParent()
        opened: list[AnsweringPort] = []
        places: list[tuple[IPv4Address | IPv6Address, Listen]] = []
        for listen in self._listens:
            try:
                ports = openPorts(listen, self._maker(listen))
                opened += ports
                places += [(port.getHost(), listen) for port in ports]
            except (AddressError, CannotListenError, OSError) as e:
                for port in opened:
                    port.stopListening()
                if isinstance(e, AddressError):
                    failStart(f"{self.name}: {e}")
                failStart(f"{self.name}: {describeListenError(listen.description, e)}")
        self._ports = opened
        for host, listen in places:
            self._log.info(
                "{name}: answers on {where}{hint}",
                name=self.name,
                where=joinHostPort(host.host, host.port),
                hint=self._hint(listen, host),
            )

    def _hint(self, listen: Listen, host: IPv4Address | IPv6Address) -> str:
        """
        @return: the end of a line, with a command that measures the path to C{host}; empty
            where a proxy's header is asked for, which that command has not.
        """
        if "proxied" in listen.wrappers:
            return ""
        policy = self.limits.policy
        access = Access(allow=policy.allow, deny=policy.deny)
        words = ["connpool", "ping", localPlace(host, access), *self._pingOptions]
        return f"; try: {commandLine(words)}"

    def _maker(self, listen: Listen) -> Callable[..., AnsweringPort]:
        headers = _headersOf(listen)
        unwrap = None
        if headers is not None:
            unwrap = _unwrapper(headers)
            ShownSource(headers).setServiceParent(self)

        def make(**where: Any) -> AnsweringPort:
            return AnsweringPort(
                self._reactor,
                self.responder,
                self.limits,
                name=self.name,
                unwrap=unwrap,
                **where,
            )

        return make

    def getHosts(self) -> list[IPv4Address | IPv6Address]:
        """
        @return: the address of each socket; a description without C{interface=}
            has two.
        @raise StartFailed: while the service does not listen.
        """
        if not self._ports:
            raise StartFailed(f"{self.name} does not listen; start the service first")
        return [port.getHost() for port in self._ports]

    def getHost(self) -> IPv4Address | IPv6Address:
        """
        @return: the address of the first socket.
        """
        return self.getHosts()[0]

    def stopService(self) -> Deferred[None]:
        super().stopService()
        if self._looping is not None:
            self._looping.stop()
            self._looping = None
            self._summarise()
        ports, self._ports = self._ports, []
        for port in ports:
            port.stopListening()
            self._past = self._past.plus(port.own())
        return succeed(None)

    def stats(self) -> DatagramStats:
        total = self._past.plus(shared(self.limits, self.responder))
        for port in self._ports:
            total = total.plus(port.own())
        return total

    def _summarise(self) -> None:
        """
        One line on what was refused since the last one, or none.
        """
        now, before = self.stats(), self._summarised
        self._summarised = now
        lost = Counter(now.refused) - Counter(before.refused)
        lost.update(Counter(now.sendErrors) - Counter(before.sendErrors))
        lost["overflowed"] = now.overflowed - before.overflowed
        why = ", ".join(f"{reason} {n}" for reason, n in sorted(lost.items()) if n)
        if why:
            self._log.info(
                "{name}: answered {answered}; not answered: {why}",
                name=self.name,
                answered=now.answered - before.answered,
                why=why,
            )


class UDPEcho(MultiService):
    """
    The UDP side and the TCP side of an echo.

    @param reactor: also the clock.
    @param listen: endpoint descriptions; C{udp:} ones answer datagrams, the others echo
        over TCP.
    @param protocol: what answers: C{NAME} or C{NAME:ARGUMENTS}, or a responder.
    @param policy: who is answered, and how much.
    @param access: the addresses that may connect over TCP, and how many at once; by
        default those of C{policy}.
    @param logInterval: seconds between summaries of what was refused.
    @param name: in logs and metrics.
    @param pingOptions: what C{connpool ping} needs to be understood by a responder of
        one's own.
    @raise AddressError: for a description or protocol that is none; one line.
    @raise WrongSetting: for a description that cannot be served; one line.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        listen: Sequence[Listen | str] = DEFAULT_LISTEN,
        protocol: IDatagramResponder | str = DEFAULT_PROTOCOL,
        policy: Policy | None = None,
        access: Access | None = None,
        logInterval: float = LOG_INTERVAL_SECONDS,
        name: str = NAME,
        pingOptions: Sequence[str] = (),
    ) -> None:
        super().__init__()
        policy = policy or Policy()
        listens = [readListen(each, datagrams=True) for each in listen]
        for each in listens:
            _checkDatagrams(each)
        if isinstance(protocol, str):
            pingOptions = pingOptions or _pingOptions(protocol)
            protocol = makeResponder(protocol)
        udp = [each for each in listens if each.datagram]
        tcp = [each for each in listens if not each.datagram]
        self._parts: list[DatagramService | ListeningService] = []
        if udp:
            self._parts.append(
                DatagramService(
                    reactor,
                    udp,
                    protocol,
                    policy,
                    logInterval=logInterval,
                    name=name,
                    pingOptions=pingOptions,
                )
            )
        if tcp:
            self._parts.append(
                ListeningService(
                    reactor,
                    tcp,
                    TCPEchoFactory(),
                    access=access or Access(allow=policy.allow, deny=policy.deny),
                    drainTimeout=5.0,
                    name=f"{name}-tcp",
                )
            )
        for part in self._parts:
            part.setServiceParent(self)

    def privilegedStartService(self) -> None:
        try:
            super().privilegedStartService()
        except StartFailed:
            self.stopService()  # what did open
            raise

    def getHosts(self) -> list[IAddress]:
        """
        @return: the addresses of all sockets, UDP first.
        @raise StartFailed: while the service does not listen.
        """
        return [host for part in self._parts for host in part.getHosts()]

    def getHost(self) -> IAddress:
        """
        @return: the address of the first socket.
        """
        return self.getHosts()[0]


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    @param options: parsed.
    @param reactor: L{None} for the global one.
    """
    if reactor is None:
        from twisted.internet import reactor
    return observed(options, options.make(reactor), reactor)
