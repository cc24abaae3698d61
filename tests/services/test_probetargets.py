"""
The targets file of C{udpprobe}.
"""

from __future__ import annotations

import os

import pytest

from connpool.datagram import Marking
from connpool.services.probetargets import Target, makeTarget, readTargets
from connpool.services.udpprobe import Options


def test_linesAndDefaults(tmp_path):
    path = tmp_path / "targets"
    key = tmp_path / "key"
    key.write_text("sesame\n")
    path.write_text(
        "# the other sites\n"
        "\n"
        "192.0.2.7:8641\n"
        f"[2001:db8::7]:8641  name=berlin protocol=irtt key-file={key} interval=0.5  # irtt\n"
        "host.example:echo round=10 timeout=0.5 family=6 source=::1 dscp=EF ttl=9 size=500\n"
        "[fe80::7]:8641 interface=lo\n"
        "host.example:8641 protocol=tcp\n"
    )
    assert list(readTargets(str(path), {"interval": "2", "timeout": "3"})) == [
        Target("192.0.2.7:8641", "192.0.2.7:8641", interval=2, timeout=3),
        Target("berlin", "[2001:db8::7]:8641", "irtt", 0.5, timeout=3, key=b"sesame"),
        Target(
            "host.example:echo", "host.example:echo", interval=2, size=500, timeout=0.5,
            round=10, family=6, source="::1", marking=Marking(dscp=46, ttl=9),
        ),
        Target(
            "[fe80::7]:8641", "[fe80::7]:8641", interval=2, timeout=3,
            marking=Marking(interface="lo"),
        ),
        Target("host.example:8641", "host.example:8641", "tcp", 2, timeout=3),
    ]  # fmt: skip


def test_theKeyIsNotShown(tmp_path):
    assert "sesame" not in repr(Target("n", "a:1", key=b"sesame"))


def test_sizesThatProtocolsNeed(tmp_path):
    key = tmp_path / "key"
    key.write_text("k")
    assert makeTarget("a:1", {"protocol": "stamp", "key-file": str(key)}).size == 112
    assert makeTarget("a:1", {"protocol": "irtt", "key-file": str(key)}).size == 64


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("host", "'host' has no port"),
        ("a:1 fast", "'fast' is not OPTION=VALUE; there are name, protocol, interval"),
        ("a:1 speed=9", "speed: no such option; there are name, protocol"),
        ("a:1 ttl=9 ttl=9", "ttl: give it once"),
        ("a:1 ttl=256", "ttl: '256' is not a TTL"),
        ("a:1 dscp=64", "dscp: '64' is not a DSCP"),
        ("a:1 interval=0", "interval: '0' is not a time"),
        ("a:1 protocol=http", "protocol: 'http' is not one of echo, irtt, stamp, tcp"),
        ("a:1 family=5", "family: '5' is not one of 4, 6"),
        ("a:1 source=host", "source: 'host' is not an address"),
        ("a:1 size=4", "size: echo takes 12 to 65507 bytes"),
        ("a:1 key-file=/nonexistent", "key-file: key-file=/nonexistent: No such file"),
        ("a:1 key-file=/dev/zero protocol=irtt", "not a regular file"),
        ("a:1 protocol=tcp dscp=EF", "interface: with dscp and ttl, it is not for protocol tcp"),
        ("a:1 name=others", "name: 'others' is the sum"),
        ("a:1 name=" + "x" * 201, "is no name of 1 to 200 printable characters"),
        ("a:1 name=", "is no name of 1 to 200"),
        ("[fe80::7]:8641", "say on which link"),
        ("a:1 name=\udcff", "not UTF-8"),
        ("a:nosuch", "no udp service is named 'nosuch'"),
    ],
)
def test_aMistakeNamesItsLine(tmp_path, line, says):
    path = tmp_path / "targets"
    path.write_bytes(b"# first\n" + line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(ValueError) as caught:
        list(readTargets(str(path), {}))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", ["mkdir", "mkfifo", "nothing", "huge"])
def test_filesThatAreNone(tmp_path, make):
    path = tmp_path / "targets"
    if make == "mkdir":
        path.mkdir()
    elif make == "mkfifo":
        os.mkfifo(path)
    elif make == "huge":
        path.write_bytes(b"#" * (5 << 20))
    with pytest.raises(ValueError, match=str(path)) as caught:
        list(readTargets(str(path), {}))
    assert "\n" not in str(caught.value)


def parsed(*words):
    options = Options()
    options.parseOptions(list(words))
    return options["all"]


def test_theCommandLine(tmp_path):
    path = tmp_path / "targets"
    path.write_text("b:1\nc:1 ttl=3\n")
    targets = parsed(
        "--to", "a:1", "--targets", str(path), "--ttl", "9", "-6", "--protocol", "stamp"
    )
    assert [(target.name, target.marking.ttl) for target in targets] == [
        ("a:1", 9),
        ("b:1", 9),
        ("c:1", 3),
    ]
    assert {(target.family, target.protocol, target.size) for target in targets} == {
        (6, "stamp", 64)
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give --to HOST:PORT or --targets FILE"),
        (["--to", "a:1", "--to", "a:1"], "--to: a:1 is named twice"),
        (["--to", "a"], "--to: 'a' has no port"),
        (["--to", "a:1", "--size", "4"], "--size: echo takes 12 to 65507 bytes"),
        (["--to", "a:1", "--dscp", "x"], "--dscp: 'x' is not a DSCP"),
        (["--to", "a:1", "-4", "-6"], "says something else"),
        (["--targets", "/nonexistent"], "--targets: /nonexistent: No such file or directory"),
        (["--targets", "/dev/null"], "--targets: /dev/null: not a regular file"),
    ],
)
def test_mistakesOnTheCommandLine(words, says):
    from twisted.python.usage import UsageError

    with pytest.raises(UsageError) as caught:
        parsed(*words)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tooManyAndTheSameTwice(tmp_path):
    from twisted.python.usage import UsageError

    path = tmp_path / "targets"
    path.write_text("a:1\na:1 dscp=EF\n")
    with pytest.raises(UsageError, match="a:1 is named twice; give one of them another name="):
        parsed("--targets", str(path))
    path.write_text("a:1\na:1 dscp=EF name=marked\n")
    assert len(parsed("--targets", str(path))) == 2
    path.write_text("".join(f"a:1 name={i}\n" for i in range(10_001)))
    with pytest.raises(UsageError, match="10001 targets; open files and memory are enough for"):
        parsed("--targets", str(path))
    path.write_text("# none\n")
    with pytest.raises(UsageError, match="names no target"):
        parsed("--targets", str(path))
