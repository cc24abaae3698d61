import resource

import pytest
from twisted.python import usage

from connpool.services.options import AccessOptions, asCount, asSeconds, asSize


class Options(AccessOptions):
    pluginName = "example"
    defaultListen = ("tcp:1:interface=127.0.0.1",)


def parsed(*argv):
    options = Options()
    options.parseOptions(argv)
    return options


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("12", 12), ("4k", 4096), ("64M", 64 << 20), ("2G", 2 << 30)]
)
def test_sizes(text, size):
    assert asSize(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5G", "1KB", "1 G", "nan", "9" * 16, "١"])
def test_badSizes(text):
    with pytest.raises(ValueError, match="number with K, M, G or T"):
        asSize(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1e999", "soon"])
def test_badSeconds(text):
    with pytest.raises(ValueError, match="seconds above 0"):
        asSeconds(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.0", "1e3", "9" * 10])
def test_badCounts(text):
    with pytest.raises(ValueError, match="at least 1"):
        asCount(text)


def test_listenDefaultsAndRepeats():
    assert [listen.description for listen in parsed()["listen"]] == ["tcp:1:interface=127.0.0.1"]
    options = parsed("--listen", "tcp:2", "--listen=unix:x")
    assert [listen.description for listen in options["listen"]] == ["tcp:2", "unix:x"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--listen", "tpc:80"],
        ["--listen", "tcp:http!"],
        ["--listen", "tcp"],
        ["--listen", "udp:80"],
        ["--listen", "haproxy:tcp:443"],
        ["--listen", "stdio:"],
        ["--listen", "ssl:443:privateKey=/nonexistent.pem"],
        ["--allow", "10.0.0.1/8"],
        ["--deny", "example.com"],
        ["stray"],
        ["--unknown"],
    ],
)
def test_mistakesAreOneLine(argv, capsys):
    with pytest.raises(usage.UsageError) as caught:
        parsed(*argv)
    assert "\n" not in str(caught.value)

    class Parent(usage.Options):
        subCommands = [["example", None, Options, ""]]

    with pytest.raises(SystemExit) as exited:
        Parent().parseOptions(["example", *argv])
    assert exited.value.code.startswith("example: ")
    assert exited.value.code.endswith("; see twistd example --help")


@pytest.mark.parametrize(
    ("files", "argv", "connections"),
    [
        ((100, 364), [], 100),
        ((100, 364), ["--max-connections=100"], 100),
        ((100, 364), ["--max-connections=7"], 7),
        ((10, 10), [], 1),
        ((1024, 1 << 20), [], 10_000),
        ((1024, 1 << 20), ["--max-connections=20000"], 20_000),
        ((1024, resource.RLIM_INFINITY), [], 10_000),
    ],
)
def test_connectionsFitTheOpenFiles(monkeypatch, files, argv, connections):
    monkeypatch.setattr(resource, "getrlimit", lambda _: files)
    assert parsed(*argv)["max-connections"] == connections


def test_moreConnectionsThanOpenFiles(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 364))
    with pytest.raises(usage.UsageError, match="364 open files are enough for 100; raise Limit"):
        parsed("--max-connections=101")
