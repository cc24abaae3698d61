"""
C{--store s3:…}: what its arguments say, made into a store.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import attrs
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.logger import Logger
from zope.interface import implementer

from connpool.addresses import clientEndpoint
from connpool.errors import StartFailed
from connpool.interfaces import IObservedStore, IStatsSource
from connpool.pool import ConnectionPool
from connpool.services.options import asSize
from connpool.services.s3keys import ChainKeys
from connpool.services.s3probe import Address, Engine, probe
from connpool.transfer.records import DURABILITIES, StoreSettings
from connpool.transfer.stores.s3.exchange import AddressedEndpoint, ExchangeFactory
from connpool.transfer.stores.s3.layout import agreement
from connpool.transfer.stores.s3.requests import Place, S3Stats, SignedRequests
from connpool.transfer.stores.s3.signing import Signer
from connpool.transfer.stores.s3.store import S3Store

__all__ = ["Arguments", "EngineStore", "connect", "make", "openStore", "parseArguments"]

#: Connections to the engine at once, and being made at once.
_CONNECTIONS, _CONNECTING = 64, 8
#: Seconds until a connection that nobody uses is closed: engines close theirs later.
_IDLE_SECONDS = 20.0

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
_AMAZON = re.compile(r"s3[.-](?:dualstack\.)?([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?")
_NAMES = (
    *("bucket", "endpoint", "prefix", "private", "region", "spool", "spool-size", "durability"),
    *("unsafe", "insecure"),
)
_SECRETS = re.compile(r"key|secret|token|password|credential", re.IGNORECASE)

_log = Logger()


@attrs.frozen
class Arguments:
    """
    Arguments of the store, read.

    @ivar addresses: the engine's endpoints, the preferred one first.
    @ivar prefix: of the files' keys: empty, or ending with a slash.
    @ivar spool: a directory for the parts that wait; L{None} for the usual one.
    @ivar spoolSize: bytes of it at most; L{None} for what fits.
    @ivar durability: what receipts say at most; L{None} for what is asked.
    @ivar unsafe: take an engine that several receivers may not share.
    """

    place: Place
    addresses: tuple[Address, ...]
    region: str
    prefix: str = ""
    spool: str | None = None
    spoolSize: int | None = None
    durability: str | None = None
    unsafe: bool = False

    @property
    def url(self) -> str:
        """
        The endpoints, for logs and errors.
        """
        return ", ".join(each.url for each in self.addresses)


def parseArguments(text: str) -> Arguments:
    """
    Read C{bucket=B,endpoint=URL,…}.

    @raise ValueError: one line, which never shows what might be secret.
    """
    given: dict[str, list[str]] = {}
    for each in filter(None, text.split(",")):
        name, equals, value = each.partition("=")
        if name not in _NAMES and _SECRETS.search(name):
            raise ValueError(
                "keys do not belong on a command line: every user of this machine can read it; "
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials"
            )
        if name not in _NAMES:
            shown = name if name.isidentifier() and len(name) < 20 else "an argument"
            raise ValueError(f"{shown} is none of {', '.join(_NAMES)}")
        if not equals or not value:
            raise ValueError(f"{name} has no value; write {name}=VALUE")
        if name in given and name != "endpoint":
            raise ValueError(f"{name} is given twice")
        given.setdefault(name, []).append(value)
    one = {name: values[0] for name, values in given.items()}
    insecure, unsafe = (_asFlag(one, name) for name in ("insecure", "unsafe"))
    bucket = _bucket(one, "bucket")
    private = _bucket(one, "private") if "private" in one else bucket
    region = one.get("region") or ""
    if region and not _REGION.fullmatch(region):
        raise ValueError("region= is no name of a region, such as eu-central-1")
    if "endpoint" not in given:
        region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "")
        if not _REGION.fullmatch(region):
            raise ValueError("say where the engine is: endpoint=URL, or region=NAME for Amazon's")
        china = ".cn" if region.startswith("cn-") else ""
        given["endpoint"] = [f"https://s3.{region}.amazonaws.com{china}"]
    addresses = tuple(_address(url, insecure=insecure) for url in given["endpoint"])
    if not region:
        amazon = _AMAZON.fullmatch(addresses[0].name)
        region = amazon[1] if amazon else "us-east-1"
    if "durability" in one and one["durability"] not in DURABILITIES:
        raise ValueError(f"durability= is one of {', '.join(DURABILITIES)}")
    return Arguments(
        place=Place(bucket, private),
        addresses=addresses,
        region=region,
        prefix=_prefix(one.get("prefix", "")),
        spool=one.get("spool"),
        spoolSize=asSize(one["spool-size"]) if "spool-size" in one else None,
        durability=one.get("durability"),
        unsafe=unsafe,
    )


def _asFlag(one: dict[str, str], name: str) -> bool:
    if one.get(name, "yes") != "yes":
        raise ValueError(f"write {name}=yes, or nothing")
    return name in one


def _bucket(one: dict[str, str], name: str) -> str:
    if not _BUCKET.fullmatch(one.get(name, "")):
        raise ValueError(
            f"{name}= is missing or no name of a bucket; write {name}=NAME (a comma goes before "
            "the next part)"
        )
    return one[name]


def _prefix(text: str) -> str:
    prefix = text.strip("/")
    parts = prefix.split("/")
    if prefix and ({"", ".", "..", ".connpool"}.intersection(parts) or not prefix.isprintable()):
        raise ValueError("prefix= is no path such as incoming/2026")
    if "\\" in prefix or len(prefix.encode()) > 256:
        raise ValueError("prefix= is no path of at most 256 bytes without a backslash")
    return f"{prefix}/" if prefix else ""


def _address(url: str, *, insecure: bool) -> Address:
    if "@" in url:
        raise ValueError(
            "endpoint= has a user in it; keys come from AWS_ACCESS_KEY_ID, "
            "~/.aws/credentials or a role"
        )
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
    except ValueError:
        name, port, parts = "", None, urlsplit("")
    labels = name.split(".")
    if (
        parts.scheme not in {"http", "https"}
        or not (name.isascii() and name.isprintable())
        or parts.path.strip("/")
        or parts.query
        or parts.fragment
        or any(not 0 < len(label) <= 63 for label in labels)
    ):
        raise ValueError("endpoint= is no URL such as https://s3.example:9000, without a path")
    secure = parts.scheme == "https"
    if not secure and not insecure and not _loopback(name):
        raise ValueError(
            f"endpoint=http://{name} sends files in clear over the network; write https://, or "
            "insecure=yes where nobody else can listen"
        )
    shown = f"[{name}]" if ":" in name else name
    host = shown if port is None else f"{shown}:{port}"
    usual = 443 if secure else 80
    return Address(f"{parts.scheme}://{host}", host, name, usual if port is None else port, secure)


def _loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


# -- the engine ------------------------------------------------------------------------------


def connect(
    reactor: Any, arguments: Arguments, settings: StoreSettings
) -> tuple[SignedRequests, ConnectionPool, Engine]:
    """
    Get keys, probe the engine, and make what asks it from now on; it blocks for seconds.

    @raise StartFailed: one line.
    """
    signer = Signer(arguments.region)
    keys = ChainKeys(reactor)
    bundle = os.environ.get("AWS_CA_BUNDLE")
    context, trust = _trust(bundle) if any(a.secure for a in arguments.addresses) else (None, None)
    engine = probe(
        *(arguments.addresses, arguments.place, arguments.prefix, signer, keys.first(), context),
        unsafe=arguments.unsafe,
        then=lambda: agreement(arguments.prefix, settings.names),
    )
    pool = ConnectionPool(
        reactor,
        endpointsOf(reactor, arguments, trust),
        ExchangeFactory(reactor),
        name="s3",
        maxSize=_CONNECTIONS,
        maxConnecting=_CONNECTING,
        idleTimeout=_IDLE_SECONDS,
        connectTimeout=10.0,
        acquireTimeout=None,
    )
    requests = SignedRequests(
        *(reactor, pool, arguments.place, signer, keys, arguments.url, engine.checksum),
        skew=engine.skew,
    )
    _log.info(
        "{product} at {url}: bodies checked by {checksum}{clause}{skew}",
        product=engine.product,
        url=arguments.url,
        checksum=engine.checksum,
        clause=f"; NOT TO BE SHARED, {engine.unsafe}" if engine.unsafe else "",
        skew=_shownSkew(engine.skew),
    )
    return requests, pool, engine


def _shownSkew(skew: float) -> str:
    if abs(skew) <= 1:
        return ""
    return f"; our clock is {abs(skew):.0f} s {'behind' if skew > 0 else 'ahead'}"


def _trust(bundle: str | None) -> tuple[ssl.SSLContext, Any]:
    """
    Return the authorities that are trusted, for C{ssl} and for Twisted.
    """
    try:
        context = ssl.create_default_context(cafile=bundle)
        if bundle is None:
            return context, None
        with open(bundle, encoding="ascii", errors="replace") as file:
            found = re.findall(
                "-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", file.read(), re.DOTALL
            )
        return context, trustRootFromCertificates([Certificate.loadPEM(each) for each in found])
    except (OSError, ssl.SSLError) as e:
        why = getattr(e, "strerror", None) or type(e).__name__
        raise StartFailed(f"AWS_CA_BUNDLE={bundle} cannot be read: {why}") from None


def endpointsOf(reactor: Any, arguments: Arguments, trust: Any = None) -> list[AddressedEndpoint]:
    """
    Return the engine's endpoints, for a pool.

    @param trust: the authorities that are trusted for TLS; L{None} for the system's.
    """
    made = []
    for each in arguments.addresses:
        host = f"[{each.name}]" if ":" in each.name else each.name
        endpoint: Any = clientEndpoint(reactor, f"{host}:{each.port}")
        if each.secure:
            endpoint = wrapClientTLS(optionsForClientTLS(each.name, trustRoot=trust), endpoint)
        made.append(AddressedEndpoint(endpoint, each.host))
    return made


@implementer(IStatsSource)
class _Numbers:
    """
    The numbers of a store and its requests.
    """

    name = "s3"
    kind = "s3"

    def __init__(self, store: S3Store, requests: SignedRequests) -> None:
        self._store = store
        self._requests = requests

    def stats(self) -> S3Stats:
        return attrs.evolve(self._requests.stats(), spoolBytes=self._store.spool.usedBytes)


@implementer(IObservedStore)
class EngineStore(S3Store):
    """
    A store with the numbers of its requests and connections.

    @ivar sources: see L{IObservedStore}.
    """

    sources: Sequence[IStatsSource] = ()


def openStore(reactor: Any, arguments: Arguments, settings: StoreSettings) -> EngineStore:
    """
    Open the store; it blocks for seconds.

    @raise StartFailed: one line.
    """
    requests, pool, engine = connect(reactor, arguments, settings)
    store = EngineStore(
        reactor,
        requests,
        settings,
        prefix=arguments.prefix,
        spoolDirectory=arguments.spool,
        spoolSize=arguments.spoolSize,
        durability=arguments.durability or DURABILITIES[-1],
        conditional=engine.completes,
        filesystem="s3, not to be shared" if engine.unsafe else "s3",
        closed=requests.close,
    )
    store.sources = (_Numbers(store, requests), pool)
    return store


def make(text: str) -> Callable[[Any, StoreSettings], S3Store]:
    """
    See L{IFileStoreFactory.make<connpool.interfaces.IFileStoreFactory.make>}.
    """
    if find_spec("botocore") is None:
        raise ValueError(
            "the extra s3 is not installed; install twisted-connpool[s3] from the checkout or wheel"
        )
    arguments = parseArguments(text)
    return lambda reactor, settings: openStore(reactor, arguments, settings)
