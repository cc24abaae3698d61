"""
Engines that tests share: each takes a second to start.
"""

import itertools

import pytest

from examples.s3.engines import juicefs, seaweedfs

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def weed(tmp_path_factory):
    """
    A SeaweedFS.
    """
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as engine:
        yield engine


@pytest.fixture(scope="session")
def juice(tmp_path_factory):
    """
    A gateway of JuiceFS.
    """
    with juicefs(tmp_path_factory.mktemp("juicefs")) as engine:
        yield engine


@pytest.fixture
def prefix():
    """
    A prefix that no other test of this run has.
    """
    return f"test{next(_numbers)}/"
