"""
What is made of the figures of commands that send files.
"""

import contextlib
import socket

import pytest

from benchmarks.processes import Failed
from benchmarks.transfer.relay import Relay
from benchmarks.transfer.sources import FileSource, TreeSource, same
from benchmarks.transfer.tools import net, netCPU
from benchmarks.transfer.webtools import putTree


def test_startUpIsTakenOff():
    row = {"start": [0.1, 0.5, 0.3], "whole": [1.3, 2.3, 0.8]}
    assert net(row) == pytest.approx([1.0, 2.0, 0.5])


def test_whatCannotBeToldFromStartUpIsNotNothing():
    assert net({"start": [0.3], "whole": [0.29]}) == pytest.approx([0.03])


def test_processorTimeIsForAGigabyte():
    row = {"startSendCPU": [0.2], "sendCPU": [1.2], "size": [2e9]}
    assert netCPU("sendCPU")(row) == pytest.approx([0.5])
    assert netCPU("sendCPU", 4096, 1e6)(row) == pytest.approx([2.048])


def test_aSourceHasAnotherNameEachTime(tmp_path):
    source = FileSource(tmp_path, 3 << 20)
    names = {source.renamed().name for _ in range(3)}
    assert len(names) == 3
    assert source.path.stat().st_size == source.size == 3 << 20
    tree = TreeSource(tmp_path, 250, 10)
    assert tree.size == 2500
    assert len([path for path in tree.renamed().rglob("*") if path.is_file()]) == 250


def test_whatArrivedIsCompared(tmp_path):
    tree = TreeSource(tmp_path, 3, 10)
    copy = tmp_path / "copy"
    with pytest.raises(Failed, match="did not arrive"):
        same(tree.path, copy)
    for number in range(3):
        (copy / str(number)).mkdir(parents=True)
        (copy / str(number) / str(number)).write_bytes(
            (tree.path / str(number) / str(number)).read_bytes()
        )
    same(tree.path, copy)
    (copy / "1" / "1").write_bytes(b"0123456789")
    with pytest.raises(Failed, match="is not what was sent"):
        same(tree.path, copy)
    (copy / "1" / "1").write_bytes(b"short")
    with pytest.raises(Failed, match="5 bytes"):
        same(tree.path, copy)


def test_aRelayStopsWhereItIsToldTo():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        relay = Relay(listener.getsockname()[1])
        watch = relay.expect(1 << 20, last=True)
        with socket.create_connection(("127.0.0.1", relay.port), 10) as sender:
            receiver, _ = listener.accept()
            with receiver:
                receiver.settimeout(10)
                sender.settimeout(0.5)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    sender.sendall(bytes(64 << 20))
                assert watch.passed.wait(10)
                got = 0
                while data := receiver.recv(1 << 20):
                    got += len(data)
        relay.close()
    assert (1 << 20) - (1 << 16) <= got <= 1 << 20
    assert watch.at >= watch.accepted > 0


def test_oneCurlPutsEachFileOfATreeUnderItsOwnName(tmp_path):
    tree = TreeSource(tmp_path, 3, 10).path
    words = putTree(tree, "http://127.0.0.1:1", tmp_path / "config")
    assert words == ["--fail-early", "-K", tmp_path / "config"]
    lines = (tmp_path / "config").read_text().splitlines()
    for number in range(3):
        file = tree / str(number) / str(number)
        assert lines[2 * number] == f'upload-file = "{file}"'
        name = f"{tree.name}/{number}/{number}"
        assert lines[2 * number + 1] == f'url = "http://127.0.0.1:1/{name}"'
    assert len(lines) == 6
