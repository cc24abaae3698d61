"""
A log that is written to all the time, sent by the command.
"""

import contextlib
import json
import threading

import pytest


@contextlib.contextmanager
def written(path, seconds=0.002):
    """
    Append lines to C{path}, all the time.
    """
    done = threading.Event()

    def write():
        with path.open("ab", buffering=0) as file:
            while not done.wait(seconds):
                file.write(b"2026-11-29 one more line of a log\n")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("size", [3000, 30_000_000])
def test_aLogThatIsWrittenTo(receiving, source, size):
    log = source / "log"
    log.write_bytes(b"x" * size)
    with written(log):
        done = receiving.send("--growing", "--json", log)
        assert done.returncode == 0, done.stderr
        stored = receiving.files()["log"]
        assert len(stored) >= size
        assert log.read_bytes().startswith(stored)
        lines = [line for line in map(json.loads, done.stdout.splitlines()) if line["path"]]
        assert lines[0]["grew"] or size < 30_000_000
        if size > 3000:
            refused = receiving.send(log)
            assert refused.returncode == 8, refused.stderr
            assert "changed while it was sent, 3 times" in refused.stderr
