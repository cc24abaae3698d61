"""
A program is told of files that are stored on an engine.
"""

import json

import pytest

from examples.s3.demo import receivers, waitFor
from tests.helpers.processes import connpool

pytestmark = [pytest.mark.slow, pytest.mark.peer("weed")]


def test_onReceived(weed, tmp_path, prefix):
    program, told = tmp_path / "program", tmp_path / "told"
    program.write_text(f"#!/bin/sh\ncat >> {told}\n")
    program.chmod(0o755)
    source = tmp_path / "source.bin"
    source.write_bytes(b"x" * (1 << 20))
    option = f"--on-received={program}"
    with receivers(tmp_path, weed, 1, option, prefix=prefix.rstrip("/")) as (receiver,):
        sent = connpool("send", "--to", f"proxyheader:tcp:127.0.0.1:{receiver.port}", source)
        assert sent.returncode == 0, sent.stderr
        waitFor(lambda: told.exists() and told.read_text().endswith("\n"))
        waitFor(lambda: weed.names("files", f".connpool/{prefix}outbox/") == [])
    [line] = told.read_text().splitlines()
    receipt = json.loads(line)
    assert (receipt["name"], receipt["key"]) == ("source.bin", f"{prefix}source.bin")
    assert receipt["filesystem"] == "s3"
