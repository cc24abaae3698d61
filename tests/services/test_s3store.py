"""
C{--store s3:…}: arguments, and what they refuse.
"""

import pytest

from connpool.services import s3store
from connpool.services.s3store import parseArguments
from connpool.services.thirdparty import makeStore
from connpool.transfer.stores.s3.requests import Place

LOCAL = "bucket=files,endpoint=http://127.0.0.1:9000"


def test_everything():
    given = parseArguments(
        "bucket=files,private=inner,endpoint=https://one.example:9000,"
        "endpoint=https://two.example,prefix=/incoming/2026/,region=eu-west-3,spool=/var/spool,"
        "spool-size=2G,durability=data,unsafe=yes"
    )
    assert given.place == Place("files", "inner")
    assert [a.url for a in given.addresses] == ["https://one.example:9000", "https://two.example"]
    assert [a.host for a in given.addresses] == ["one.example:9000", "two.example"]
    assert [a.port for a in given.addresses] == [9000, 443]
    assert (given.prefix, given.region) == ("incoming/2026/", "eu-west-3")
    assert (given.spool, given.spoolSize) == ("/var/spool", 2 << 30)
    assert (given.durability, given.unsafe) == ("data", True)


def test_least(monkeypatch):
    monkeypatch.delenv("AWS_REGION", raising=False)
    given = parseArguments(LOCAL)
    assert given.place == Place("files", "files")
    assert (given.prefix, given.region, given.unsafe) == ("", "us-east-1", False)


def test_regions(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    amazon = parseArguments("bucket=files")
    assert amazon.url == "https://s3.eu-north-1.amazonaws.com"
    assert amazon.region == "eu-north-1"
    named = parseArguments("bucket=files,endpoint=https://s3.ap-south-1.amazonaws.com")
    assert named.region == "ap-south-1"
    china = parseArguments("bucket=files,region=cn-north-1")
    assert china.url == "https://s3.cn-north-1.amazonaws.com.cn"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "127.9.9.9:80"])
def test_loopbackInClear(host):
    assert not parseArguments(f"bucket=files,endpoint=http://{host}").addresses[0].secure


def test_elsewhereInClear():
    with pytest.raises(ValueError, match="insecure=yes"):
        parseArguments("bucket=files,endpoint=http://engine.example")
    assert parseArguments("bucket=files,endpoint=http://engine.example,insecure=yes")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "bucket= is missing"),
        ("bucket=Files_,endpoint=http://127.0.0.1", "no name of a bucket"),
        ("bucket", "write bucket=VALUE"),
        ("bucket=a12,bucket=b12", "given twice"),
        (LOCAL + ",speed=9", "speed is none of bucket,"),
        (LOCAL + ",spool-size=much", "not a size"),
        (LOCAL + ",unsafe=no", "unsafe=yes, or nothing"),
        (LOCAL + ",durability=eternal", "durability= is one of"),
        (LOCAL + ",region=Über", "no name of a region"),
        (LOCAL + ",prefix=a/../b", "no path"),
        (LOCAL + ",prefix=a//b", "no path"),
        (LOCAL + ",prefix=.connpool/x", "no path"),
        (LOCAL + ",prefix=a\\b", "backslash"),
        ("bucket=files,endpoint=ftp://127.0.0.1", "no URL"),
        ("bucket=files,endpoint=http://127.0.0.1/path", "without a path"),
        ("bucket=files,endpoint=http://127.0.0.1?q=1", "no URL"),
        ("bucket=files,endpoint=http://127.0.0.1:99999", "no URL"),
        ("bucket=files,endpoint=http://", "no URL"),
        (f"bucket=files,endpoint=https://{'a' * 64}.example", "no URL"),
    ],
)
def test_refused(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parseArguments(text)
    assert "\n" not in str(caught.value)


def test_whereAmazonIs(monkeypatch):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="endpoint=URL, or region=NAME"):
        parseArguments("bucket=files")


@pytest.mark.parametrize(
    "text",
    [
        LOCAL + ",key=AKIASECRET",
        LOCAL + ",secret-key=AKIASECRET",
        LOCAL + ",AWS_SESSION_TOKEN=AKIASECRET",
        "bucket=files,endpoint=http://AKIASECRET:x@127.0.0.1:9000",
        "bucket=files,endpoint=https://AKIASECRET@engine.example",
        LOCAL + ",AKIASECRETAKIASECRETAKIASECRET",
    ],
)
def test_nothingSecretOnTheCommandLine(text):
    """
    It is refused, and not shown again.
    """
    with pytest.raises(ValueError) as caught:
        parseArguments(text)
    assert "AKIASECRET" not in str(caught.value)


def test_withoutTheExtra(monkeypatch):
    """
    One line that names it, before anything else is said about the arguments.
    """
    monkeypatch.setattr(s3store, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"extra s3 .*twisted-connpool\[s3\]") as caught:
        makeStore("s3:")
    assert "\n" not in str(caught.value)


def test_asAStoreOfTheReceiver():
    chosen = makeStore(f"s3:{LOCAL}")
    assert chosen.name == "s3"
    assert chosen.takes == {"quota", "keepPartials", "onReceived"}
    with pytest.raises(ValueError, match="s3: bucket="):
        makeStore("s3:endpoint=http://127.0.0.1:9000")
