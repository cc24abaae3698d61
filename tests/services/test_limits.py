import resource
import subprocess
import sys

import pytest

from connpool.services.limits import (
    DESCRIPTORS_PER_CONNECTION,
    RESERVED_DESCRIPTORS,
    connectionsFor,
    descriptorLimit,
)


@pytest.mark.parametrize("descriptors", [256, 1024, 4096, 524_288])
def test_connectionsFitTheDescriptors(descriptors):
    connections = connectionsFor(descriptors)
    assert connections * DESCRIPTORS_PER_CONNECTION + RESERVED_DESCRIPTORS <= descriptors
    assert (connections + 1) * DESCRIPTORS_PER_CONNECTION + RESERVED_DESCRIPTORS > descriptors


def test_oneConnectionAtLeast():
    assert connectionsFor(1) == 1


def test_theLimitIsTheHardOne():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert descriptorLimit() == hard or hard == resource.RLIM_INFINITY


def test_raisesTheSoftLimit():
    program = (
        "import resource\n"
        "from connpool.services.limits import raiseDescriptors, descriptorLimit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 300))\n"
        "raiseDescriptors()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE), descriptorLimit())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == "(300, 300) 300\n"
