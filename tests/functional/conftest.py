"""
Fixtures for programs on real sockets.
"""

import pytest
import pytest_twisted

from tests.helpers.receiving import Receiving
from tests.helpers.waiting import bounded


@pytest.fixture
def receiving(tmp_path):
    """
    A receiver that meets no error that it did not expect.
    """
    with Receiving(tmp_path) as made:
        yield made
    assert "Traceback" not in made.program.output


@pytest.fixture
def source(tmp_path):
    """
    An empty directory for what is to be sent.
    """
    path = tmp_path / "source"
    path.mkdir()
    return path


@pytest.fixture
def file(tmp_path):
    """
    A small file.
    """
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def start():
    """
    Start services; those that still run are stopped when the test ends.
    """
    running = []

    def starting(service):
        service.privilegedStartService()
        service.startService()
        running.append(service)
        return service

    yield starting
    for service in reversed(running):
        if service.running:
            pytest_twisted.blockon(bounded(service.stopService()))
