import pytest
from twisted.python import usage

from connpool.services.status import StatusOptions, observed


class Options(StatusOptions):
    pluginName = "example"


def parsed(*argv):
    options = Options()
    options.parseOptions(list(argv))
    return options


def test_withoutItTheServiceStaysAsItIs():
    assert observed(parsed(), service := object(), None) is service


@pytest.mark.parametrize(
    "argv",
    [
        ["--status=tcp:0:interface=127.0.0.1"],
        [r"--status=tcp:0:interface=\:\:1"],
        ["--status=unix:/run/status"],
        ["--status=tcp:0", "--status-allow=10.0.0.0/8", "--status-allow=fd00::/8"],
        ["--status=tcp:0", "--status-allow=any"],
        ["--status=tcp:0:interface=127.0.0.1", "--status-host=a.example", "--status-host=b"],
    ],
)
def test_taken(argv):
    options = parsed(*argv)
    assert options["status"].description == argv[0].removeprefix("--status=")
    assert options["status-auth"] is None


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--status=tcp:0"], "--status-allow CIDR or --status-auth"),
        (["--status=tcp:0:interface=192.0.2.1"], "can be reached from other machines"),
        (["--status=proxied:tcp:0:interface=127.0.0.1:trusted=10.0.0.1"], "other machines"),
        (["--status=udp:8690:interface=127.0.0.1"], "does not speak UDP"),
        (["--status=8690"], "not an endpoint"),
        (["--status=tpc:8690:interface=127.0.0.1"], "--status: 'tpc"),
        (["--status=tcp:0", "--status-allow=10.0.0.1/8"], "--status-allow"),
        (["--status-allow=10.0.0.0/8"], "give that too"),
        (["--status-host=a"], "give that too"),
        (["--status-host=a:80"], "'a:80' is not a name; write it without the port"),
        (["--status-auth=file:x"], "give that too"),
        (["--status=unix:x", "--status-auth=memory:a:b"], "use file:"),
        (["--status=unix:x", "--status-auth=file:/nonexistent"], "cannot read"),
        (["--status=unix:x", "--status-auth=file"], "cannot read"),
        (["--status=unix:x", "--status-auth=nonsense:1"], "nonsense"),
        (["--status=unix:x", "--status-auth=anonymous"], "does not check passwords"),
        (["--status=unix:x", "--status=unix:y"], "--status: give it once"),
    ],
)
def test_mistakesAreOneLine(argv, says):
    with pytest.raises(usage.UsageError) as caught:
        parsed(*argv)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_passwordsNeverCrossTheNetworkInClear(tmp_path):
    path = tmp_path / "passwords"
    path.write_text("watcher:s3cret\n")
    with pytest.raises(usage.UsageError, match="in clear"):
        parsed("--status=tcp:0", f"--status-auth=file:{path}")
    with pytest.raises(usage.UsageError, match="in clear"):
        parsed("--status=tcp:0", "--status-allow=10.0.0.0/8", f"--status-auth=file:{path}")
    local = parsed("--status=tcp:0:interface=127.0.0.1", f"--status-auth=file:{path}")
    assert local["status-auth"] is not None


def test_everyServiceOfOursHasIt():
    from twisted.application.service import IServiceMaker
    from twisted.plugin import getPlugins

    ours = [
        maker
        for maker in getPlugins(IServiceMaker)
        if maker.module.startswith("connpool.services.")
    ]
    assert {"filerecv", "udpecho", "compose"} <= {maker.tapname for maker in ours}
    for maker in ours:
        assert issubclass(maker.options, StatusOptions), maker.tapname
