import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.python import usage

from connpool.addresses import parseListen
from connpool.services import composefile
from connpool.services.composefile import (
    Binding,
    Entry,
    argumentsOf,
    bindingOf,
    clashes,
    didYouMean,
    readEntries,
)


class Grammar(usage.Options):
    optParameters = [["directory", "d", None, ""], ["max-size", None, "1", "", int]]
    optFlags = [["quiet", "q", ""]]

    def opt_listen(self, text):
        self.setdefault("listen", []).append(text)

    def parseArgs(self, *words):
        self["words"] = words


def read(text):
    mistakes = []
    return readEntries(text, mistakes), mistakes


def argv(toml):
    (entry,), mistakes = read(f'[services.a]\nplugin = "p"\n{toml}')
    words = argumentsOf(entry, Grammar(), mistakes)
    return words, mistakes


def test_anEntry():
    entries, mistakes = read(
        '[services.inbox]\nplugin = "filerecv"\nargs = ["x"]\nquiet = true\nmax-size = 3'
    )
    assert mistakes == []
    assert entries == [Entry("inbox", "filerecv", {"quiet": True, "max-size": 3}, ("x",))]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no service"),
        ("services = 3", "no service"),
        ("[services]", "no service"),
        ("[service.a]", "services are tables"),
        ("[services]\na = 1", "services.a: not a table"),
        ("[services.a]", "services.a: which plugin?"),
        ("[services.a]\nplugin = 3", "services.a: which plugin?"),
        ("[services.a]\nplugin = ''", "services.a: which plugin?"),
        ("[services.a]\nplugin = 'web'\nargs = 'x'", "services.a: args is a list"),
        ("[services.a]\nplugin = 'web'\nargs = [1]", "services.a: args is a list"),
        ("[services.'a b']\nplugin = 'web'", "not a name"),
        ("[services.\"a\\nb\"]\nplugin = 'web'", "not a name"),
        ("[services.'']\nplugin = 'web'", "not a name"),
        (f"[services.{'a' * 64}]\nplugin = 'web'", "not a name"),
    ],
)
def test_aWrongStructureIsOneLine(text, says):
    _, mistakes = read(text)
    assert any(says in line for line in mistakes), mistakes
    assert all("\n" not in line for line in mistakes)


@pytest.mark.parametrize("text", ["[services.a", "a = ", "[services.a]\nx = 1\nx = 2", "\0"])
def test_noTOML(text):
    with pytest.raises(ValueError, match=r"at (line|end)"):
        readEntries(text, [])


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("", []),
        ("directory = '-x'", ["--directory=-x"]),
        ("directory = ''", ["--directory="]),
        ("max-size = 12", ["--max-size=12"]),
        ("max-size = 1.5", ["--max-size=1.5"]),
        ("quiet = true", ["--quiet"]),
        ("quiet = false", []),
        ("listen = 'a'", ["--listen=a"]),
        ("listen = ['a', 'b']", ["--listen=a", "--listen=b"]),
        ("listen = []", []),
        ("args = ['-x', 'y']\nquiet = true", ["--quiet", "--", "-x", "y"]),
    ],
)
def test_whatAnEntrySaysOnACommandLine(toml, words):
    assert argv(toml) == (words, [])
    Grammar().parseOptions(words if "1.5" not in toml else [])


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("dir = 'x'", "p has no option 'dir'; did you mean directory?"),
        ("d = 'x'", "p has no option 'd'; did you mean directory?"),
        ("max_size = 1", "did you mean max-size?"),
        ("zzz = 1", "p has no option 'zzz' (twistd p --help lists them)"),
        ("help = true", "no option 'help'"),
        ("version = true", "no option 'version'"),
        ("quiet = 'yes'", "quiet is a flag; write quiet = true"),
        ("quiet = 1", "quiet is a flag"),
        ("directory = true", 'takes a value, not a flag; write directory = "…"'),
        ("directory = ['x']", "directory takes one value, not a list"),
        ("listen = [['x']]", "listen takes one value, not a list"),
        ("listen = [true]", "listen takes a value"),
        ("directory = 2026-01-01", "takes text or a number"),
        ("directory = {a = 1}", "takes text or a number"),
    ],
)
def test_aWrongKeyIsOneLineThatNamesTheService(toml, says):
    _, (mistake,) = argv(toml)
    assert mistake.startswith("services.a: ")
    assert says in mistake


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=10,
)
KEYS = st.sampled_from(["plugin", "args", "quiet", "listen", "directory"]) | st.text(max_size=9)


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.text(max_size=9))
def test_whateverIsWrittenIsArgumentsOrLines(table, name):
    entry = composefile._readEntry(name, table, mistakes := [])
    if entry is not None:
        words = argumentsOf(entry, Grammar(), mistakes)
        if not mistakes and "max-size" not in table:
            (parsed := Grammar()).parseOptions(words)
            assert parsed["words"] == entry.args
    assert (entry is None) <= bool(mistakes)
    assert all(len(line.splitlines()) == 1 for line in mistakes)
    assert all(line.startswith("services.") for line in mistakes)


def test_everyMistakeIsSaid():
    _, mistakes = argv("dir = 'x'\nquiet = 1\nlisten = true")
    assert len(mistakes) == 3


def test_nearNames():
    assert didYouMean("filercv", ["filerecv", "filesend"]).startswith("; did you mean filerecv")
    assert didYouMean("qqq", ["filerecv"]) == ""


@pytest.mark.parametrize(
    ("description", "binding"),
    [
        ("tcp:80", Binding("tcp", "80")),
        ("tcp:port=80:interface=0.0.0.0", Binding("tcp", "80")),
        ("tcp:80:interface=127.0.0.1", Binding("tcp", "80", "127.0.0.1")),
        (r"tcp6:80:interface=\:\:", Binding("tcp", "80", "::")),
        (r"tcp:80:interface=0\:0\:\:1", Binding("tcp", "80", "::1")),
        ("secured:proxied:tcp:80:certificate=c", Binding("tcp", "80")),
        ("haproxy:ssl:443", Binding("tcp", "443")),
        ("tls:/etc/certificates:tcp:443", Binding("tcp", "443")),
        ("udp:80:interface=127.0.0.1", Binding("udp", "80", "127.0.0.1")),
        ("unix:/run/a", Binding("unix", "/run/a")),
        ("unix:address=/run/a", Binding("unix", "/run/a")),
        ("systemd:domain=INET:name=web", Binding("systemd", "web")),
        ("udp:systemd:name=web", Binding("systemd", "web")),
        ("tcp:0", None),
        ("udp:80:reusePort=yes", None),
        ("stdio:", None),
        ("onion:80", None),
    ],
)
def test_whatAListenerBinds(description, binding):
    assert bindingOf(parseListen(description)) == binding


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("tcp:80", "tcp:80", True),
        ("tcp:80", "tcp:80:interface=127.0.0.1", True),
        ("tcp:80:interface=127.0.0.1", "tcp:80", True),
        ("tcp:80:interface=127.0.0.1", "secured:tcp:80:interface=127.0.0.1", True),
        ("unix:/run/a", "unix:/run/a:mode=660", True),
        ("systemd:domain=INET:name=a", "systemd:domain=INET:name=a", True),
        (r"tcp:80:interface=\:\:", "tcp:80", True),
        (r"tcp:80:interface=\:\:", "tcp:80:interface=127.0.0.1", True),
        (r"udp:80:interface=\:\:", r"udp:80:interface=\:\:1", True),
        ("udp:80:interface=0.0.0.0", "udp:80:interface=127.0.0.1", True),
        (r"udp:80:interface=\:\:", "udp:80:interface=0.0.0.0", False),
        ("udp:80", r"udp:80:interface=\:\:", False),
        (r"udp:80:interface=\:\:1", "udp:80:interface=127.0.0.1", False),
        ("tcp:80", r"tcp:80:interface=\:\:1", False),
        ("tcp:80", "tcp:81", False),
        ("tcp:80", "udp:80", False),
        ("tcp:80:interface=127.0.0.1", "tcp:80:interface=127.0.0.2", False),
        ("tcp:0", "tcp:0", False),
        ("unix:/run/a", "unix:/run/b", False),
    ],
)
def test_twoServicesOnOnePort(first, second, clash):
    bindings = [
        (f"services.{name}", text, binding)
        for name, text in (("a", first), ("b", second))
        if (binding := bindingOf(parseListen(text))) is not None
    ]
    lines = list(clashes(bindings))
    assert len(lines) == clash
    if clash:
        assert lines[0].startswith(f"services.b: listens on {second}, which services.a already")
