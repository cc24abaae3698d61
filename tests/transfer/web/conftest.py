"""
A door in memory.
"""

import pytest

from tests.transfer.web.kit import World


@pytest.fixture
def door():
    world = World()
    yield world
    world.close()


@pytest.fixture
def doors():
    """
    Make doors of other settings.
    """
    made = []

    def make(**settings):
        made.append(World(**settings))
        return made[-1]

    yield make
    for world in made:
        world.close()
