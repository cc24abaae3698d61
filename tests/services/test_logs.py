import io
import json
import os
import resource
import shutil
import subprocess

import attrs
import pytest
from twisted.logger import (
    Logger,
    LogLevel,
    LogPublisher,
    formatEvent,
    jsonFileLogObserver,
    textFileLogObserver,
)
from twisted.python.failure import Failure

from connpool.services import logs
from connpool.services.logs import FILES, jsonLine, logTogether, rotating, rotatingJSON, textLines
from connpool.transfer import Receipt

RECEIPT = Receipt(
    *("0" * 32, "a", "a", 3, "stored", "full", "ext4"),
    *("verified", None, None, "native", "me", 0.5),
)


def line(template="hello {who}", level=LogLevel.info, **values):
    caught = []
    Logger("connpool.test", observer=caught.append).emit(level, template, **values)
    text = jsonLine(caught[0])
    assert text.count("\n") == 1
    return text


def test_oneObjectALine():
    said = json.loads(line(who="wörld", size=3, ratio=0.5, done=True))
    assert said["time"].endswith("+00:00")
    del said["time"]
    assert said == {
        "level": "info",
        "logger": "connpool.test",
        "text": "hello wörld",
        "who": "wörld",
        "size": 3,
        "ratio": 0.5,
        "done": True,
    }


@attrs.frozen
class Secretive:
    name: str = "n"
    key: bytes = b"k"
    password: str = attrs.field(default="geheim", repr=False)


def test_whatJSONHasNotIsLeftOut():
    text = line("{who}", who=Secretive(), nan=float("nan"), inf=float("inf"), thing=object())
    assert "geheim" not in text
    said = json.loads(text)
    assert said["who"] == {"name": "n"}
    assert not {"nan", "inf", "thing"} & said.keys()


def test_aReceiptIsAnObject():
    said = json.loads(line("received {receipt.name}", receipt=RECEIPT))
    assert said["text"] == "received a"
    assert said["receipt"]["transferId"] == "0" * 32


def batch():
    """
    The event of three files that came together, as a reception emits it.
    """
    names = ["a", "b", "c"]
    receipts = tuple(attrs.evolve(RECEIPT, name=name, transferId=name * 32) for name in names)
    lines = [f"received {name}, id {name * 32}" for name in names]
    caught = []
    log = Logger("connpool.test", observer=caught.append)
    log.info("{text}", text="\n".join(lines), receipts=receipts, peer="192.0.2.7")
    return caught[0], lines


def test_aLineForEachFileOfABatch():
    event, lines = batch()
    found = [json.loads(each) for each in jsonLine(event).splitlines()]
    assert [each["text"] for each in found] == lines
    assert [each["receipt"]["name"] for each in found] == ["a", "b", "c"]
    assert [each["id"] for each in found] == ["a" * 32, "b" * 32, "c" * 32]
    # in everything else it is the line of a file that came alone
    alone = json.loads(
        line("{text}", text=lines[0], receipt=event["receipts"][0], peer="192.0.2.7", id="a" * 32)
    )
    del alone["time"], found[0]["time"]
    assert found[0] == alone
    text = textLines(event).splitlines()
    assert [each.partition("connpool.test#info] ")[2] for each in text] == lines


def test_whatIsLoggedTogether():
    """
    A line each, with what is its own and what all have; one event for Twisted's own logs.
    """
    caught = []
    log = Logger("connpool.test", observer=caught.append)
    lines = [{"text": f"sent {name}", "file": name, "id": name * 32} for name in "ab"]
    logTogether(log, lines, name="out")
    logTogether(log, [], name="out")
    [event] = caught
    found = [json.loads(each) for each in jsonLine(event).splitlines()]
    assert [{key: each[key] for key in ("text", "file", "id")} for each in found] == lines
    assert {each["name"] for each in found} == {"out"}
    text = textLines(event).splitlines()
    assert [each.partition("connpool.test#info] ")[2] for each in text] == ["sent a", "sent b"]
    assert formatEvent(event) == "sent a\nsent b"


@pytest.mark.parametrize("lines", [None, 5, (), (1, 2), [{}]])
def test_whatIsNotLoggedTogetherIsOneLine(lines):
    assert json.loads(line("{text}", text="one", lines=lines))["text"] == "one"


@pytest.mark.parametrize("receipts", [None, 5, (1, 2)])
def test_whatIsNoBatchIsOneLine(receipts):
    assert json.loads(line("{text}", text="one", receipts=receipts))["text"] == "one"


def test_twistedsOwnLogsHaveTheBatch(tmp_path):
    """
    Text with every id, and JSON with the list.
    """
    event, lines = batch()
    text, objects = io.StringIO(), io.StringIO()
    textFileLogObserver(text)(event)
    jsonFileLogObserver(objects)(event)
    assert text.getvalue().count("\n\t") == 2
    assert all(each in text.getvalue() for each in lines)
    assert "c" * 32 in objects.getvalue()


def test_aFailureHasItsTraceback():
    said = json.loads(line("oops", log_failure=Failure(ValueError("why"))))
    assert "ValueError: why" in said["traceback"]


def test_valuesCannotPoseAsTheLineItself():
    said = json.loads(line("x", level=LogLevel.warn, text="forged", time="never", logger="root"))
    assert (said["level"], said["text"], said["logger"]) == ("warn", "x", "connpool.test")
    assert said["time"] != "never"


HOSTILE = ["a\nb", "\r\x1b[31m", '"},{"', "\udc80\ud800", "\u2028\u2029", "\0", "'\\"]


@pytest.mark.peer("jq")
def test_jqReadsHostileNames(tmp_path):
    file = tmp_path / "log"
    file.write_text("".join(line("{name}", name=name) for name in HOSTILE), encoding="utf-8")
    ended = subprocess.run(
        [shutil.which("jq"), "-c", ".level", file], check=True, capture_output=True, timeout=60
    )
    assert ended.stdout == b'"info"\n' * len(HOSTILE)


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "FILE_BYTES", 1000)
    monkeypatch.setenv("CONNPOOL_LOG", str(tmp_path / "log"))
    return tmp_path


def fill(observer, lines):
    publisher = LogPublisher(observer)
    log = Logger("connpool.test", observer=publisher)
    for number in range(lines):
        log.info("line {number} {filler}", number=number, filler="x" * 80)
    observer._outFile.close()


@pytest.mark.parametrize("factory", [rotating, rotatingJSON])
def test_tenFilesAreKept(small, factory):
    fill(factory(), 300)
    files = sorted(small.iterdir())
    assert len(files) == FILES
    assert all(file.stat().st_size < 1300 for file in files)
    assert all(file.stat().st_mode & 0o777 == 0o640 for file in files)
    assert "line 299" in (small / "log").read_text()
    kept = "".join((small / f"log.{n}").read_text() for n in range(FILES - 1, 0, -1))
    numbers = [int(text.split()[0]) for text in kept.split("line ")[1:]]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


def test_continuesAnOldFile(small):
    (small / "log").write_text("old\n")
    fill(rotating(), 1)
    assert (small / "log").read_text().startswith("old\n")


def test_saysThatItCannotRotate(small, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    observer = rotatingJSON()
    monkeypatch.setattr(os, "replace", refuse)
    fill(observer, 30)
    text = (small / "log").read_text()
    assert [path.name for path in small.iterdir()] == ["log"]
    assert "line 29" in text
    assert 1 < text.count("cannot rotate") < 10


def test_aRotationThatFailedHalfwayIsMadeGood(small, monkeypatch):
    """
    The file was renamed, and then there was no descriptor for the new one.
    """

    def refuse(*_):
        raise OSError(24, "Too many open files")

    file = logs.RotatingFile("log", str(small), 1000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        for _ in range(2):
            file.write("x" * 1000)
    assert not (small / "log").exists()
    for _ in range(30):
        file.write("y" * 1000)
    file.close()
    assert len(list(small.iterdir())) == FILES
    assert all(each.stat().st_size <= 1000 for each in small.iterdir())


def test_aFullDiskLeavesNoHalfLine(small):
    file = logs.RotatingFile("log", str(small), 1000)
    file.write("first\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        for _ in range(2):
            with pytest.raises(OSError, match="No space"):
                file.write("does not fit\n")
        file.write("fit\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.write("last\n")
    file.close()
    assert (small / "log").read_text() == "first\nfit\nlast\n"


@pytest.mark.parametrize("factory", [rotating, rotatingJSON])
def test_hostileValuesLoseNoLine(small, factory):
    observer = factory()
    log = Logger("connpool.test", observer=LogPublisher(observer))
    log.info("got {name}", name="caf\udce9")
    log.info("got something", n=10**5000)
    log.info("got more")
    observer._outFile.close()
    text = (small / "log").read_text()
    assert text.count("got") == 3
    assert "observer" not in text


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"LOGS_DIRECTORY": "{tmp}/a:{tmp}/b"}, "a/connpool.log"),
        ({"LOGS_DIRECTORY": "{tmp}/a", "CONNPOOL_LOG": "{tmp}/b/x"}, "b/x"),
        ({}, "connpool.log"),
    ],
)
def test_whereTheFileIs(tmp_path, monkeypatch, environ, path):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
    for name in ("LOGS_DIRECTORY", "CONNPOOL_LOG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    fill(rotating(), 1)
    assert (tmp_path / path).exists()


def test_aFileThatCannotBeWrittenIsOneLine(tmp_path, monkeypatch):
    monkeypatch.setenv("CONNPOOL_LOG", str(tmp_path / "none" / "log"))
    with pytest.raises(SystemExit) as ended:
        rotating()
    assert ended.value.code.endswith("No such file or directory; name another file in CONNPOOL_LOG")


def test_aSymbolicLinkIsNotFollowed(tmp_path, monkeypatch):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "log").symlink_to(tmp_path / "target")
    monkeypatch.setenv("CONNPOOL_LOG", str(tmp_path / "log"))
    with pytest.raises(SystemExit, match="it is a symbolic link; name another file"):
        rotatingJSON()
    assert (tmp_path / "target").read_text() == "precious"
