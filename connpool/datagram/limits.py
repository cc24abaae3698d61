"""
Being a good neighbour: the sources that a public datagram service answers, and
how often.

A UDP source address is a claim.  A service that answers it may be made a weapon
against the address claimed (reflection), may talk for ever with another program
that answers (CERT CA-1996-01, CVE-2024-2169), and pays memory for each claim it
remembers.  So:

  - Everything remembered lives in tables of a fixed size.  Networks share a slot
    when they collide, as in DNS response rate limiting; the hash is keyed, so
    nobody outside can choose with whom.
  - What can be said of a source alone (its port, its address, the lists) is said
    once and remembered in a small cache: L{Limits.source}.  What depends on time
    is a token bucket per network and one for all: L{Limits.admit}, which takes a
    whole batch of one source at once.
  - A source whose datagrams have all been here before, byte for byte, probably
    echoes our own answers.  What counts is how often it repeats one, whichever
    that is: so many datagrams in a loop are found however long their way round
    is.  Half of what such a source sends is refused, so k datagrams in a loop
    are gone after log2 k rounds.  A loop lasts, so looking at some finds it.
  - Trusted sources and loopback are counted against the rates and never dropped:
    the kernel takes no datagram claiming to be loopback from outside.  Rules
    about ports and addresses hold for them too.

Known flaws:

  - A loop in which fewer than four datagrams a second come is not recognised.
  - Constant datagrams sent faster than that by an untrusted source look like a
    loop, as do those that differ only in the middle of more than 512 bytes.  Our
    prober, irtt and STAMP number theirs in front.
  - A loop between an echo and a program that changes the datagram each time, as
    a STAMP reflector of somebody else's does, is bounded by the rate only.
    L{connpool.datagram.Stamp} itself knows answers when it sees them.
  - Two processes of one machine may loop over loopback when it is trusted.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections import Counter
from collections.abc import Iterable

import attrs

from connpool.addresses import Networks
from connpool.addresses.zones import isLinkLocal
from connpool.errors import AddressError
from connpool.tokenbucket import TokenBuckets

__all__ = ["ANSWERING_PORTS", "RULES", "Limits", "OwnPorts", "Policy", "Source"]

#: Source ports behind which a program answers any datagram, or answers at all:
#: between two of these a datagram never comes to rest.  Those below 1024 stand
#: here for C{--relax low-ports}.  None lies in the range from which systems choose
#: the ports of clients, 32768 and above.
ANSWERING_PORTS = frozenset(
    {7, 13, 17, 19, 37, 53, 69, 111, 123, 137, 138, 161, 389, 427, 500, 520, 862}
    | {1194, 1434, 1645, 1701, 1812, 1813, 1900, 2112, 3283, 3389, 3478, 3702, 4500}
    | {5060, 5093, 5353, 5683, 8641, 10001, 11211, 20800, 27015}
)

#: Each rule and what it refuses.  C{Policy.relax} takes the names.
RULES = {
    "low-ports": "source ports below 1024",
    "answering-ports": "source ports of services that answer (DNS, NTP, SSDP, …)",
    "own-ports": "source ports that this process answers on",
    "sources": "broadcast, multicast and reserved source addresses",
    "broadcast": "datagrams sent to a broadcast or multicast address",
    "length": "answers longer than their request",
    "loops": "datagrams that look like our own answers coming back",
    "rate": "more answers than a network, or all, may have",
}

NOBODY = Networks()

LOOP_SLOTS = 8192
#: Bytes at either end of a datagram by which it is recognised.
FINGERPRINT_BYTES = 256
#: One datagram of so many is looked at, and of these so many may be repetitions.
LOOP_EVERY = 4
LOOP_COUNT = 7
#: Seconds between two repetitions that were looked at, at most.
LOOP_GAP_SECONDS = 1.0
#: Seconds that a suspicion lasts.
LOOP_HOLD_SECONDS = 1.0

_NOWHERE = bytes(16)
_LOOPBACK6 = bytes(15) + b"\x01"


def _isLoopback(address: bytes) -> bool:
    return address[0] == 127 if len(address) == 4 else address == _LOOPBACK6


def _isSource(address: bytes) -> bool:
    """
    Say whether a datagram may come from C{address}: RFC 1122 3.2.1.3, RFC 4291 2.5.
    """
    if len(address) == 4:
        return 0 < address[0] < 224
    return address[0] != 0xFF and address != _NOWHERE


def _relaxed(relax: frozenset[str]) -> frozenset[str]:
    unknown = relax - set(RULES)
    if unknown:
        raise AddressError(
            f"{', '.join(sorted(unknown))}: no such rule; there are {', '.join(RULES)}"
        )
    return relax


@attrs.frozen
class Policy:
    """
    @ivar allow: networks that are answered; empty means everybody.
    @ivar deny: networks that are not; wins.
    @ivar trusted: networks that the rates and the loop rule count but never drop.
    @ivar trustLoopback: whether loopback is among them.
    @ivar rate: answers per second to one IPv4 /24 or IPv6 /64; a /48 has four
        times as much.
    @ivar burst: answers at once; of these networks.
    @ivar maxRate: answers per second to all.
    @ivar relax: names of L{RULES} that are off.
    """

    allow: Networks = NOBODY
    deny: Networks = NOBODY
    trusted: Networks = NOBODY
    trustLoopback: bool = True
    rate: float = 20_000.0
    burst: int = 40_000
    maxRate: float = 100_000.0
    relax: frozenset[str] = attrs.field(default=frozenset(), converter=_relaxed)


class OwnPorts:
    """
    The ports this process answers on.

    @ivar version: changes whenever a port comes or goes.
    """

    def __init__(self) -> None:
        self._ports: Counter[int] = Counter()
        self.version = 0

    def add(self, port: int) -> None:
        self._ports[port] += 1
        self.version += 1

    def remove(self, port: int) -> None:
        self._ports[port] -= 1
        if not self._ports[port]:
            del self._ports[port]
        self.version += 1

    def __contains__(self, port: int) -> bool:
        return port in self._ports


#: All services of a process share this one: they must not answer each other.
OWN_PORTS = OwnPorts()


@attrs.define
class Source:
    """
    The verdict on an address and port.

    @ivar key: the same for the same address, port and link, and for no other.
    @ivar refusal: the reason never to answer; empty for none.
    @ivar trusted: whether rates only count.
    @ivar net: slot of its network in the rate table: its /24 or /64; a link-local
        address counts for itself.
    @ivar buckets: all tables and slots that its answers are charged to.
    @ivar excess: slot of its network in the table of longer answers.
    """

    key: bytes
    refusal: str
    trusted: bool
    net: int
    buckets: tuple[tuple[TokenBuckets, int], ...]
    excess: int


class Limits:
    """
    @ivar refused: datagrams not answered, by reason.
    @ivar overLimit: datagrams of trusted sources that were answered beyond a rate.
    """

    #: Sources remembered; forgotten all at once when full.
    CACHE = 1024

    def __init__(self, policy: Policy, ownPorts: OwnPorts = OWN_PORTS) -> None:
        self.policy = policy
        self._ownPorts = ownPorts
        self._exempt: set[int] = set()
        self._version = ownPorts.version
        self._secret = os.urandom(16)
        self._nets = TokenBuckets(32_768, policy.rate, policy.burst)
        self._sites = TokenBuckets(8_192, 4 * policy.rate, 4 * policy.burst)
        self._all = TokenBuckets(1, policy.maxRate, max(1, int(2 * policy.maxRate)))
        self._excess = TokenBuckets(8_192, 1.0, 1)
        self._loops = LoopWatch()
        #: have one datagram of a batch looked at for a loop
        self.look = self._loops.look if "loops" not in policy.relax else _lookAway
        self._limitRate = "rate" not in policy.relax
        self._sources: dict[object, Source] = {}
        self.refused: Counter[str] = Counter()
        self.overLimit = 0

    def sources(self) -> dict[object, Source]:
        """
        @return: the verdicts of L{source} that still hold, by name, for a caller
            that looks up many at once.
        """
        if self._version != self._ownPorts.version:
            self._version = self._ownPorts.version
            self._sources.clear()
        return self._sources

    def exempt(self, ports: Iterable[int]) -> None:
        """
        Let source ports pass the rules about ports, for responders that know an
        answer when it comes back.
        """
        self._exempt |= set(ports)
        self._sources.clear()

    def source(self, address: bytes, port: int, name: object, zone: int = 0) -> Source:
        """
        @param address: packed, 4 or 16 bytes.
        @param name: an object that the caller has at hand, which stands for this
            address and port and for no other.
        @param zone: index of the link of a link-local address.
        """
        sources = self.sources()
        found = sources.get(name)
        if found is None:
            if len(sources) >= self.CACHE:
                sources.clear()
            found = sources[name] = self._judge(address, port, zone)
        return found

    def _judge(self, address: bytes, port: int, zone: int) -> Source:
        policy = self.policy
        host = _text(address)
        key = port.to_bytes(2, "big") + address
        net, site = (address[:3], b"") if len(address) == 4 else (address[:8], address[:6])
        if isLinkLocal(address):
            # all of them are in one network, and the same on two links are two hosts
            key += zone.to_bytes(4, "big")
            net, site = key[2:], b""
        slot = self._slot(self._nets, net)
        buckets = [(self._nets, slot), (self._all, 0)]
        if site:
            buckets.append((self._sites, self._slot(self._sites, site)))
        return Source(
            key=key,
            refusal=self._refusal(address, host, port),
            trusted=(policy.trustLoopback and _isLoopback(address))
            or (bool(policy.trusted) and host in policy.trusted),
            net=slot,
            buckets=tuple(buckets),
            excess=self._slot(self._excess, net),
        )

    def _refusal(self, address: bytes, host: str, port: int) -> str:
        policy = self.policy
        relax = policy.relax
        if (policy.deny and host in policy.deny) or (policy.allow and host not in policy.allow):
            return "denied"
        if port == 0:
            return "port-zero"
        if "sources" not in relax and not _isSource(address):
            return "sources"
        if port in self._exempt:
            return ""
        if "own-ports" not in relax and port in self._ownPorts:
            return "own-ports"
        if "low-ports" not in relax and port < 1024:
            return "low-ports"
        if "answering-ports" not in relax and port in ANSWERING_PORTS:
            return "answering-ports"
        return ""

    def _slot(self, table: TokenBuckets, prefix: bytes) -> int:
        # SipHash; the secret is in the text because PYTHONHASHSEED may fix its key
        return hash(self._secret + prefix) % len(table.full)

    def admit(self, source: Source, count: int, now: float) -> int:
        """
        @param count: datagrams from C{source}, of which none is answered yet.
        @return: the number of them to answer; the rest is counted as refused.
        """
        if source.refusal:
            self.refused[source.refusal] += count
            return 0
        if self._loops.suspects and not source.trusted:
            granted = self._loops.thin(source.key, count, now)
            self.refused["loops"] += count - granted
            count = granted
        if not self._limitRate:
            return count
        within = True
        for table, slot in source.buckets:
            full = table.full[slot]
            if full < now:  # noqa: PLR1730 - max() is a call, and this runs for each datagram
                full = now
            full += count * table.interval
            table.full[slot] = full
            if full > now + table.depth:
                within = False
        return count if within else self._overLimit(source, count, now)

    def _overLimit(self, source: Source, count: int, now: float) -> int:
        """
        Not all tokens that were taken are there.
        """
        for table, slot in source.buckets:
            table.full[slot] -= count * table.interval
        least = min(count, *(table.free(slot, now) for table, slot in source.buckets))
        for table, slot in source.buckets:
            table.take(slot, least, now)
        if source.trusted:
            self.overLimit += count - least
            return count
        self.refused["rate"] += count - least
        return least

    def longer(self, source: Source, now: float) -> bool:
        """
        Decide whether one answer that is longer than its request may go to this
        network now.  One in a second may; those to trusted sources only count.
        """
        if source.trusted:
            return True
        if self._excess.free(source.excess, now) < 1:
            return False
        self._excess.take(source.excess, 1, now)
        return True


def _lookAway(source: Source, payload: bytes | memoryview, now: float) -> None:
    pass


class LoopWatch:
    """
    Finds sources that only repeat what they have sent before.

    @ivar suspects: sources under suspicion, to when it ends and whether the
        next datagram is answered.
    """

    SUSPECTS = 256

    def __init__(self) -> None:
        #: hashes of datagrams with their sources
        self._prints = array("q", bytes(8 * LOOP_SLOTS))
        #: of sources: hash, repetitions, and when the last of these was
        self._sources = array("q", bytes(8 * LOOP_SLOTS))
        self._counts = array("B", bytes(LOOP_SLOTS))
        self._last = array("d", bytes(8 * LOOP_SLOTS))
        self.suspects: dict[bytes, tuple[float, int]] = {}
        self._tick = 0

    def look(self, source: Source, payload: bytes | memoryview, now: float) -> None:
        """
        @param payload: all of it; most are not looked at, so nobody need copy it.
        """
        self._tick += 1
        if self._tick % LOOP_EVERY:
            return
        key = source.key
        # a number in it comes first or last
        ends = bytes(payload[:FINGERPRINT_BYTES]), bytes(payload[-FINGERPRINT_BYTES:])
        print_ = hash((key, len(payload), ends))
        slot = print_ % LOOP_SLOTS
        if self._prints[slot] != print_:
            self._prints[slot] = print_
            return
        sender = hash(key)
        slot = sender % LOOP_SLOTS
        count = 1
        if self._sources[slot] == sender and now - self._last[slot] <= LOOP_GAP_SECONDS:
            count += self._counts[slot]
        self._sources[slot] = sender
        self._last[slot] = now
        self._counts[slot] = min(count, LOOP_COUNT)
        if count >= LOOP_COUNT:
            self._suspect(key, now)

    def _suspect(self, key: bytes, now: float) -> None:
        if key in self.suspects:
            self.suspects[key] = (now + LOOP_HOLD_SECONDS, self.suspects[key][1])
        else:
            if len(self.suspects) >= self.SUSPECTS:
                self.suspects.clear()
            self.suspects[key] = (now + LOOP_HOLD_SECONDS, 0)

    def thin(self, key: bytes, count: int, now: float) -> int:
        """
        @return: the number of datagrams from C{key} to answer, of C{count}.
        """
        found = self.suspects.get(key)
        if found is None:
            return count
        end, odd = found
        if end < now:
            del self.suspects[key]
            return count
        granted = (count + odd) // 2
        self.suspects[key] = (end, (count + odd) % 2)
        return granted


def _text(address: bytes) -> str:
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    return socket.inet_ntop(family, address)
