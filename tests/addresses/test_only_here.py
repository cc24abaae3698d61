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
    "connpool/observe/tcpstates.py": "the hexadecimal columns of /proc/net/tcp",
}

#: Functions that look names up, or split addresses, with rules of their own.
OTHER_RULES = {"getaddrinfo", "gethostbyname", "create_connection", "urlsplit", "HostnameEndpoint"}

#: Files that may call one of these, and the reason.
ALLOWED = {
    ("connpool/services/s3store.py", "urlsplit"): "a URL, whose host is then connected to as any",
    ("examples/s3/demo.py", "create_connection"): "whether a port of this machine listens yet",
}


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "attr", getattr(node.func, "id", "")), node


def splitsHostPort(tree):
    """
    Whether something is split at its last colon, or at a colon into what is
    called a host or port.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and splitsAtColon(node, FROM_THE_LEFT):
            target = ast.unparse(node.targets[0]).lower()
            if any(word in target for word in ("host", "port", "addr")):
                return True
    return splitsAtColon(tree, FROM_THE_RIGHT)


def splitsAtColon(tree, methods):
    return any(name in methods and atColon(call) for name, call in calls(tree))


def atColon(call):
    return bool(call.args) and getattr(call.args[0], "value", None) in {":", b":"}


def test_hostPortIsReadHere():
    """
    Brackets, zones, mistakes and look-ups, which end, are the same everywhere.
    """
    trees = {path.relative_to(TOP).as_posix(): ast.parse(path.read_text()) for path in SOURCES}
    splitting = {name for name, tree in trees.items() if splitsHostPort(tree)}
    assert splitting == set(OTHER_COLONS), (
        "use splitHostPort or another function of connpool.addresses"
    )
    found = {name: {called for called, _ in calls(tree)} for name, tree in trees.items()}
    for name, called in ALLOWED:
        found[name].remove(called)
    assert {name: called for name, called in found.items() if called & OTHER_RULES} == {}, (
        "use clientEndpoint, resolveTCPAddr or resolveUDPAddr of connpool.addresses"
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
    assert splitsHostPort(ast.parse(text)) is splits
