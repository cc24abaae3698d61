"""
Who takes an address apart, or looks a name up, does it here.
"""

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent.parent
SOURCES = [
    path
    for folder in ("connpool", "examples")
    for path in sorted((TOP / folder).rglob("*.py"))
    if "addresses" not in path.parts
]

FROM_THE_LEFT = {"find", "index", "partition", "split"}
FROM_THE_RIGHT = {"rfind", "rindex", "rpartition", "rsplit"}

#: What is split at a colon into a host and a port, and is no HOST:PORT.
OTHER_COLONS = {
    "connpool/observe/protection.py": "the Host header of HTTP, whose port may be missing",
    "connpool/observe/tcpstates.py": "the hexadecimal columns of /proc/net/tcp",
}

#: Functions that look names up, or split addresses, with rules of their own.
OTHER_RULES = {"getaddrinfo", "gethostbyname", "create_connection", "urlsplit", "HostnameEndpoint"}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "attr", getattr(node.func, "id", "")), node


def splitsHostPort(text):
    """
    Whether something is split at its last colon, or at a colon into what is
    called a host or port.
    """
    tree = ast.parse(text)
    for node in ast.walk(tree):
        targets = ast.unparse(node.targets[0]).lower() if isinstance(node, ast.Assign) else ""
        telling = any(word in targets for word in ("host", "port", "addr"))
        for name, call in calls(node) if targets else ():
            if telling and name in FROM_THE_LEFT and atColon(call):
                return True
    return any(name in FROM_THE_RIGHT and atColon(call) for name, call in calls(tree))


def atColon(call):
    return bool(call.args) and getattr(call.args[0], "value", None) in {":", b":"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_hostPortIsReadHere(path):
    """
    Brackets, zones, mistakes and look-ups, which end, are the same everywhere.
    """
    name = path.relative_to(TOP).as_posix()
    text = path.read_text()
    assert not splitsHostPort(text) or name in OTHER_COLONS, (
        "use splitHostPort or another function of connpool.addresses"
    )
    found = {called for called, _ in calls(ast.parse(text))} & OTHER_RULES
    assert not found, (
        f"{found}: use clientEndpoint, resolveTCPAddr or resolveUDPAddr of connpool.addresses"
    )


@pytest.mark.parametrize(
    ("text", "splits"),
    [
        ("host, _, port = text.partition(':')", True),
        ("parts = text.rsplit(':', 1)", True),
        ("theirHost = text.split(':')[0]", True),
        ("name, _, arguments = text.partition(':')", False),
        ("host, port = splitHostPort(text)", False),
    ],
)
def test_theTestSees(text, splits):
    assert splitsHostPort(text) is splits


def test_exceptionsAreNeeded():
    for name in OTHER_COLONS:
        assert splitsHostPort((TOP / name).read_text())
