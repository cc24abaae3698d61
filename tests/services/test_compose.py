import resource
import sys

import pytest
import pytest_twisted
from twisted.application import service
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.python import usage

from connpool.errors import StartFailed
from connpool.services import compose as composing
from connpool.services.compose import Options, compose, describe
from tests.helpers.waiting import assertNoResult, bounded, successResultOf

# twisted.web.tap, at import
pytestmark = pytest.mark.filterwarnings("ignore:.*_Unsafe:DeprecationWarning")


@pytest.fixture(autouse=True)
def _excepthook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


class Recorder(service.Service):
    """
    A third party's service that says what happens to it.
    """

    def __init__(self, options, reactor):
        self.options = options
        self.reactor = reactor
        self.events = []

    def _event(self, event):
        self.events.append(event)
        if self.options["fail"] == event:
            raise OSError(5, "Input/output error")
        if self.options["fail"] == f"exit {event}":
            sys.exit("cannot go on")

    def privilegedStartService(self):
        self._event("privileged")

    def startService(self):
        self._event("start")

    def stopService(self):
        self._event("stop")
        return self.options.get("ended")


class RecorderOptions(usage.Options):
    optParameters = [["fail", None, None, ""]]
    optFlags = [["exit", None, ""]]

    def postOptions(self):
        if self["exit"]:
            sys.exit(0)


class Recording:
    tapname = "recorder"
    options = RecorderOptions

    def makeService(self, options, reactor=None):
        if options["fail"] == "make":
            raise RuntimeError("no\nreason")
        return None if options["fail"] == "none" else Recorder(options, reactor)


@pytest.fixture(autouse=True)
def _recorder(monkeypatch):
    real = composing.getPlugins
    monkeypatch.setattr(composing, "getPlugins", lambda kind: [*real(kind), Recording()])


def recorders(*fails):
    text = "".join(
        f"[services.r{i}]\nplugin = 'recorder'\n" + (f"fail = '{fail}'\n" if fail else "")
        for i, fail in enumerate(fails)
    )
    composed = compose(text, reactor="the reactor")
    return composed, [child.services[0] for child in composed]


def mistakes(text):
    with pytest.raises(StartFailed) as caught:
        compose(text, "FILE")
    return str(caught.value).split("\n")


def test_startsAndStopsInOneProcess():
    composed, (a, b) = recorders(None, None)
    composed.privilegedStartService()
    composed.startService()
    assert [child.name for child in composed] == ["r0", "r1"]
    assert a.reactor == "the reactor"
    b.options["ended"] = drained = Deferred()
    stopped = composed.stopService()
    assertNoResult(stopped)
    drained.callback(None)
    successResultOf(stopped)
    assert a.events == b.events == ["privileged", "start", "stop"]


@pytest.mark.parametrize("step", ["privileged", "start", "exit privileged", "exit start"])
def test_aChildThatCannotStartIsNamedAndTheOthersStop(step):
    composed, (a, b, c) = recorders(None, step, None)
    with pytest.raises(StartFailed, match=r"^services\.r1: .*(Input/output error|cannot go on)"):
        composed.privilegedStartService()
        composed.startService()
    assert a.events[-1] == b.events[-1] == "stop"
    assert ("stop" in c.events) == step.endswith("start")


def test_aChildThatDoesNotStopCleanlyIsNamed(expectFailure):
    expectFailure(OSError)
    composed, (a, b) = recorders("stop", None)
    composed.startService()
    successResultOf(composed.stopService())
    assert a.events == b.events == ["start", "stop"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("plugin = 'wbe'", "no plugin is called 'wbe'; did you mean web?"),
        ("plugin = 'compose'", "compose cannot hold itself"),
        ("plugin = 'web'\nlist = 'tcp:0'", "web has no option 'list'; did you mean listen?"),
        ("plugin = 'web'\nlisten = 'tpc:80'", "Unknown endpoint type: 'tpc'"),
        ("plugin = 'ftp'\nport = 'many'", "'many'; see twistd ftp --help"),
        ("plugin = 'ftp'\nargs = ['x']", "Wrong number of arguments"),
        ("plugin = 'filerecv'\nallow-root = true", "give it to twistd compose"),
        (
            (
                "plugin = 'udpecho'\nlisten = 'tcp:9:interface=127.0.0.1'\n"
                "status = 'tcp:9:interface=127.0.0.1'"
            ),
            "which services.inbox already takes",
        ),
        ("plugin = 'recorder'\nfail = 'make'", "RuntimeError: no; see twistd recorder --help"),
        ("plugin = 'recorder'\nfail = 'none'", "gave NoneType, no service"),
        ("plugin = 'recorder'\nexit = true", "recorder ended instead of giving a service"),
    ],
)
def test_everyMistakeIsOneLineThatNamesTheService(text, says):
    (line,) = mistakes(f"[services.inbox]\n{text}")
    assert line.startswith("services.inbox: ")
    assert says in line


def test_allMistakesAreSaidAtOnce():
    lines = mistakes(
        "[services.a]\nplugin = 'wbe'\n[services.b]\nplugin = 'web'\nlist = 1\ndisplay = 2\n"
        "[services.c]\nplugin = 'web'\nlisten = 'tcp:9'\n"
        "[services.d]\nplugin = 'web'\nlisten = ['unix:x', 'tcp:9:interface=127.0.0.1']\n"
    )
    assert [line.split(":")[0] for line in lines] == [
        "services.a",
        "services.b",
        "services.b",
        "services.d",
    ]


def test_mistakesOfTheFileNameTheFile():
    assert mistakes("[services.a")[0].startswith("FILE: not TOML: ")
    assert mistakes(f"x = {'[' * 5000}")[0].startswith("FILE: not TOML: ")
    assert mistakes("x = 1")[0].startswith("FILE: unknown table or key 'x'")


def test_ourServicesGetTheirNameAndTheirShareOfTheConnections(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 364))
    composed = compose(
        "[services.a]\nplugin = 'filerecv'\n"
        "[services.b]\nplugin = 'filerecv'\nmax-connections = 7\nname = 'mine'\n"
        "listen = 'tcp:0:interface=127.0.0.1'"
    )
    a, b = (child.services[0] for child in composed)
    assert [(s.name, s.listening.gate.access.maxConnections) for s in (a, b)] == [
        ("a", 50),
        ("mine", 7),
    ]


def test_describeKeepsOneLine():
    busy = CannotListenError("127.0.0.1", 80, OSError(98, "Address already in use"))
    assert describe("a", "ftp", busy).startswith(
        "services.a: Address already in use: 127.0.0.1:80; another"
    )
    assert describe("a", "p", StartFailed("a: no")) == "services.a: no"
    assert describe("a", "p", StartFailed("p: no")) == "services.a: no"
    assert describe("a", "p", SystemExit("bad\nvery")) == "services.a: bad"
    assert describe("a", "p", ValueError()) == (
        "services.a: ValueError: no reason given; see twistd p --help"
    )


@pytest_twisted.ensureDeferred
async def test_aPortInUseIsFoundAtTheStart():
    from twisted.internet.protocol import Factory

    port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
    listen = f"tcp:{port.getHost().port}:interface=127.0.0.1"
    composed = compose(f"[services.site]\nplugin = 'web'\nlisten = '{listen}'")
    with pytest.raises(StartFailed, match=r"^services\.site: Address already in use: .*; another"):
        composed.privilegedStartService()
    await bounded(port.stopListening())


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "name one file"),
        (["a", "b"], "name one file"),
        (["/nonexistent.toml"], "cannot read /nonexistent.toml: No such file"),
        (["/"], "cannot read /: Is a directory"),
        (["--chekc", "x"], "chekc"),
    ],
)
def test_wrongArguments(argv, says):
    with pytest.raises(usage.UsageError, match=says):
        Options().parseOptions(argv)


def test_aFileThatIsNotText(tmp_path):
    (tmp_path / "f").write_bytes(b"\xff")
    with pytest.raises(usage.UsageError, match="not UTF-8"):
        Options().parseOptions([str(tmp_path / "f")])


@pytest.mark.parametrize(
    ("plugin", "options"),
    [
        ("filerecv", "directory = 'none'"),
        ("filesend", "directory = 'none'\nto = '127.0.0.1:8640'"),
        ("filesend", "directory = '.'\nto = '127.0.0.1:8640'\nmove-to = 'none'"),
    ],
)
def test_checkFindsMissingDirectories(tmp_path, monkeypatch, plugin, options):
    monkeypatch.chdir(tmp_path)
    text = f"[services.a]\nplugin = '{plugin}'\n{options}"
    compose(text)
    with pytest.raises(StartFailed, match=r"^services\.a: --.* there is no directory none; make"):
        compose(text, check=True)
    (tmp_path / "none").mkdir()
    compose(text, check=True)


@pytest.mark.parametrize(("plugin", "says"), [("ftp", None), ("ftpp", "services.a: no plugin")])
def test_check(tmp_path, capsys, plugin, says):
    # with the mark in front that Windows programs write
    (tmp_path / "f").write_text(f"\ufeff[services.a]\nplugin = '{plugin}'", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions(["--check", str(tmp_path / "f")])
    if says is None:
        assert ended.value.code == 0
        assert "1 services, no mistake found" in capsys.readouterr().out
    else:
        assert ended.value.code.startswith(says)


@pytest.mark.parametrize(
    ("status", "clash"),
    [("8641", True), ("8641:interface=127.0.0.1", True), ("8642", False)],
)
def test_theStatusPortIsTakenToo(tmp_path, capsys, status, clash):
    path = tmp_path / "f.toml"
    path.write_text('[services.e]\nplugin = "udpecho"\nlisten = "tcp:8641:interface=127.0.0.1"\n')
    options = Options()
    words = ["--check", f"--status=tcp:{status}", "--status-allow=any", str(path)]
    with pytest.raises(SystemExit) as ended:
        options.parseOptions(words)
    if clash:
        assert ended.value.code == (
            "services.e: listens on tcp:8641:interface=127.0.0.1, which --status already takes; "
            "choose another port"
        )
    else:
        assert ended.value.code == 0
        assert "no mistake found" in capsys.readouterr().out
