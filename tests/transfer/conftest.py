"""
What most tests of the protocol begin with.
"""

import pytest

from connpool.transfer.receive import smallfiles
from connpool.transfer.receive.policy import Policy
from tests.transfer.world import World


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path / "state")
    yield made
    made.close()


@pytest.fixture
def strict(tmp_path):
    """
    One that holds senders to a pace, and in which nothing may be left in the end.
    """
    made = World(tmp_path / "state", Policy())
    yield made
    made.settle(200)
    assert not made.store._partials
    made.close()


@pytest.fixture
def smallFiles(monkeypatch):
    """
    A file of more than 2 KiB does not go in one piece.
    """
    monkeypatch.setattr(smallfiles, "SMALL_FILE_BYTES", 2048)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.mkdir()
    return path
