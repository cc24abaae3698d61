"""
Who takes an address apart does it here.
"""

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent.parent
SOURCES = [
    *sorted((TOP / "connpool").rglob("*.py")),
    *sorted((TOP / "examples").rglob("*.py")),
]

TAKING_APART = {"find", "index", "partition", "rfind", "rindex", "rpartition", "rsplit", "split"}

#: What is split at a colon elsewhere, and is no HOST:PORT.
OTHER_COLONS = {
    "connpool/datagram/responders.py": "NAME:ARGUMENTS of a plugin",
    "connpool/observe/protection.py": "the Host header of HTTP, whose port may be missing",
    "connpool/observe/tcpstates.py": "the hexadecimal columns of /proc/net/tcp",
    "connpool/plugin.py": "module:function",
    "connpool/services/listeners.py": "NAME:ARGUMENTS of a plugin",
    "connpool/services/logs.py": "a list of directories, as systemd passes it",
    "connpool/services/status.py": "KIND:ARGUMENT of a credentials checker",
}

#: Functions that look names up or split addresses with rules of their own.
OTHER_RULES = {"getaddrinfo", "gethostbyname", "create_connection", "urlsplit", "HostnameEndpoint"}


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            function = node.func
            yield getattr(function, "attr", getattr(function, "id", "")), node


def splitsAtColon(path):
    return any(
        name in TAKING_APART
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value in {":", b":"}
        for name, node in calls(path)
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_hostPortIsSplitHere(path):
    """
    L{connpool.addresses} reads every HOST:PORT: brackets, zones and mistakes
    are the same everywhere.
    """
    name = path.relative_to(TOP).as_posix()
    if name.startswith("connpool/addresses/"):
        return
    assert not splitsAtColon(path) or name in OTHER_COLONS, (
        "use connpool.addresses for HOST:PORT; if it is something else, say so in OTHER_COLONS"
    )


def test_theTestSees():
    assert splitsAtColon(TOP / "connpool/addresses/descriptions.py") is False
    assert splitsAtColon(TOP / "connpool/addresses/hostport.py")
    assert splitsAtColon(TOP / "connpool/observe/tcpstates.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_namesAreLookedUpHere(path):
    """
    Look-ups end: see L{connpool.addresses.NameResolver}.
    """
    name = path.relative_to(TOP).as_posix()
    if name.startswith("connpool/addresses/"):
        return
    found = {called for called, _ in calls(path)} & OTHER_RULES
    assert not found, (
        f"{found}: use clientEndpoint, resolveTCPAddr or resolveUDPAddr of connpool.addresses"
    )
