"""
Services from keywords: the same defaults and the same refusals as on a command line.
"""

import inspect

import attrs
import pytest
from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.task import Clock
from twisted.python import usage

from connpool.addresses import Networks
from connpool.datagram import Policy as EchoPolicy
from connpool.errors import AddressError, StartFailed, WrongSetting
from connpool.services import (
    Access,
    FileReceiver,
    FileSender,
    ObservedService,
    PoolRelay,
    Target,
    UDPEcho,
    UDPProbe,
    filerecv,
    filesend,
    poolrelay,
    udpecho,
)
from connpool.transfer import LocalStore, Policy
from connpool.transfer.identities import Identities

OPEN = "tcp:8640"
HIDDEN = "tcp:8640:interface=127.0.0.1"
CHECKER = InMemoryUsernamePasswordDatabaseDontUse()


def store(reactor):
    raise AssertionError("not started")


def receiver(directory="inbox", **keywords):
    return FileReceiver(Clock(), directory, **keywords)


@pytest.mark.parametrize(
    ("argv", "keywords"),
    [
        (["--listen", OPEN], {"listen": [OPEN]}),
        (["--listen", OPEN, "--allow=any"], {"listen": [OPEN], "access": Access(allow=["any"])}),
        (["--classic-suffix=/"], {"classicSuffix": "/"}),
        (["--if-exists=overwrite"], {"policy": Policy(ifExists="overwrite")}),
        (["--names=dos"], {"policy": Policy(names="dos")}),
    ],
)
def test_theSameRefusalEitherWay(argv, keywords):
    options = filerecv.Options()
    with pytest.raises(usage.UsageError) as told:
        options.parseOptions(argv)
    with pytest.raises(WrongSetting) as raised:
        receiver(**keywords)
    assert str(raised.value) == str(told.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("keywords", "error", "says"),
    [
        ({"directory": None}, WrongSetting, "give one of them"),
        ({"store": store}, WrongSetting, "give one of them"),
        ({"directory": None, "store": store, "quota": 5}, WrongSetting, "--quota is about"),
        ({"directory": None, "store": store, "onReceived": "/bin/true"}, WrongSetting, "on-rec"),
        ({"digests": ["md5"]}, WrongSetting, "md5"),
        ({"onReceived": "/nonexistent"}, WrongSetting, "not a program"),
        ({"listen": ["8640"]}, AddressError, "8640"),
        ({"listen": ["udp:8640"]}, AddressError, "does not speak UDP"),
        ({"listen": ["haproxy:tcp:8640"]}, AddressError, "proxied:"),
        ({"listen": [OPEN], "checkers": [CHECKER]}, WrongSetting, "in clear"),
        ({"identities": Identities.parse("", int)}, WrongSetting, "--identities is about"),
    ],
)
def test_valuesThatAreRefused(keywords, error, says):
    with pytest.raises(error, match=says) as caught:
        receiver(**keywords)
    assert "\n" not in str(caught.value)


def test_networksAreTakenAsTexts():
    assert Access(allow=["192.0.2.0/24"]) == Access(allow=Networks.parse(["192.0.2.0/24"]))
    with pytest.raises(AddressError):
        Access(deny=["nonsense"])


def test_theDefaultsOfTheOptionsAreTheConstructors():
    options = filerecv.Options()
    options.parseOptions([])
    made = inspect.signature(FileReceiver).parameters
    for option, name in (
        ("keep-partials", "keepPartials"),
        ("file-mode", "fileMode"),
        ("dir-mode", "dirMode"),
        ("drain-timeout", "drainTimeout"),
        ("classic-suffix", "classicSuffix"),
        ("name", "name"),
    ):
        assert options[option] == made[name].default
    assert tuple(options["digests"]) == made["digests"].default
    assert options.access == Access()
    policy = Policy()
    assert (options["idle-timeout"], options["min-rate"]) == (
        policy.idleTimeout,
        policy.minimumRate,
    )
    options = filesend.Options()
    options.parseOptions(["--directory=.", "--to=a:1"])
    made = inspect.signature(FileSender).parameters
    for option, name in (
        ("settle", "settle"),
        ("interval", "interval"),
        ("jobs", "jobs"),
        ("attempts", "attempts"),
        ("writer-warning", "writerWarning"),
        ("name", "name"),
    ):
        assert options[option] == made[name].default


def test_theDefaultsOfTheDirectoryAreTheStores():
    ours = inspect.signature(FileReceiver).parameters
    theirs = inspect.signature(LocalStore).parameters
    for name in ("fileMode", "dirMode", "keepExec", "quota", "minFree"):
        assert ours[name].default == theirs[name].default
    assert ours["keepPartials"].default == theirs["ttl"].default
    assert attrs.fields(Policy).names.default == theirs["names"].default


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"to": "tpc:a:1"}, AddressError),
        ({"to": "unix:/run/s", "ca": "ca.pem"}, AddressError),
        ({"to": "a:1", "ignore": ["["]}, WrongSetting),
    ],
)
def test_aSenderThatIsRefused(keywords, error):
    with pytest.raises(error) as caught:
        FileSender(Clock(), "outbox", **keywords)
    assert "\n" not in str(caught.value)


def test_aMissingDirectoryIsSaidAtTheStart(tmp_path):
    service = receiver(tmp_path / "none", listen=["tcp:0:interface=127.0.0.1"])
    with pytest.raises(StartFailed, match="does not exist"):
        service.startService()


@pytest.mark.parametrize(
    ("keywords", "error", "says"),
    [
        ({"listen": "tcp:8690"}, WrongSetting, "--status-allow CIDR"),
        ({"listen": "tcp:8690", "checker": CHECKER}, WrongSetting, "in clear"),
        ({"listen": "udp:8690"}, AddressError, "UDP"),
        ({"allow": ["nonsense"]}, AddressError, "nonsense"),
    ],
)
def test_aPageThatIsRefused(keywords, error, says):
    with pytest.raises(error, match=says):
        ObservedService(Clock(), receiver(), **keywords)


def test_aPageIsAServiceAroundAnother():
    service = receiver(listen=[HIDDEN])
    page = ObservedService(Clock(), service)
    assert page.service is service
    assert service.parent is page


@pytest.mark.parametrize(
    ("keywords", "error", "says"),
    [
        ({"listen": ["8641"]}, AddressError, "8641"),
        ({"listen": ["secured:udp:8641"]}, ValueError, "secured"),
        ({"listen": ["proxied:udp:8641"]}, ValueError, "trusted"),
        ({"protocol": "chargen"}, AddressError, "no datagram protocol"),
    ],
)
def test_anEchoThatIsRefused(keywords, error, says):
    with pytest.raises(error, match=says) as caught:
        UDPEcho(Clock(), **keywords)
    assert "\n" not in str(caught.value)


def test_theDefaultsOfTheEchosOptions():
    options = udpecho.Options()
    options.parseOptions([])
    policy = EchoPolicy()
    assert (options["rate"], options["burst"], options["max-rate"]) == (
        policy.rate,
        policy.burst,
        policy.maxRate,
    )
    made = inspect.signature(UDPEcho).parameters
    assert options["log-interval"] == made["logInterval"].default
    assert options["name"] == made["name"].default
    assert [each.description for each in options["listen"]] == list(made["listen"].default)


def test_probesOfTexts():
    probes = UDPProbe(Clock(), ["127.0.0.1:1", Target("b", "127.0.0.1:2", interval=0.5)])
    assert [each.name for each in probes] == ["127.0.0.1:1", "b"]
    with pytest.raises(AddressError):
        UDPProbe(Clock(), ["nowhere"])


UPSTREAM = ["--upstream", "tcp:db.example:5432"]


@pytest.mark.parametrize(
    ("argv", "keywords"),
    [
        (["--listen", OPEN], {"upstream": []}),
        ([*UPSTREAM, "--allow=any"], {"listen": []}),
        (
            ["--listen", HIDDEN, *UPSTREAM, "--min-idle=9", "--max-size=3"],
            {"minIdle": 9, "maxSize": 3},
        ),
        (
            ["--listen", HIDDEN, "--upstream=tls:a:1", "--upstream=tcp:b:1", "--proxy-header=v1"],
            {"upstream": ["tls:a:1", "tcp:b:1"], "proxyHeader": "v1"},
        ),
        (["--listen", HIDDEN, "--upstream=tcp:a"], {"upstream": ["tcp:a"]}),
    ],
)
def test_theSameRefusalOfARelayEitherWay(argv, keywords):
    options = poolrelay.Options()
    with pytest.raises(usage.UsageError) as told:
        options.parseOptions(argv)
    keywords = {"listen": [HIDDEN], "upstream": ["tcp:db.example:5432"], **keywords}
    with pytest.raises((AddressError, WrongSetting)) as raised:
        PoolRelay(Clock(), **keywords)
    assert str(raised.value) == str(told.value)


def test_defaultsOfARelayAreThoseOfItsOptions():
    options = poolrelay.Options()
    options.parseOptions(["--listen", HIDDEN, *UPSTREAM])
    made = options.make(Clock()).pool.settings
    default = PoolRelay(Clock(), [HIDDEN], ["tcp:db.example:5432"]).pool.settings
    # each has a function of its own that says how long to wait
    assert attrs.evolve(made, backoff=default.backoff) == default
