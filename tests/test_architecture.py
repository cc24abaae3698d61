"""
The picture that the imports draw: each room imports lower floors only.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent / "connpool"

#: Room to the rooms it may import, beside itself.
GROUND = {"errors", "interfaces", "addresses"}
MAY_IMPORT = {
    "errors": set(),
    "interfaces": {"errors"},
    "addresses": {"errors", "interfaces"},
    "proxyprotocol": GROUND,
    "pool": GROUND,
    "transfer": GROUND,
    "datagram": GROUND,
    "observe": GROUND,
    "services": GROUND | {"proxyprotocol", "pool", "transfer", "datagram", "observe"},
    "commands": GROUND | {"proxyprotocol", "pool", "transfer", "datagram", "observe", "services"},
    "testing": GROUND | {"pool", "transfer", "datagram", "proxyprotocol"},
    "plugin": set(),
    "__main__": {"commands"},
}


def imports(path: Path) -> set[str]:
    """
    The rooms a file imports at run time, late imports included.
    """
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
            if node.module == "connpool":
                names = [f"connpool.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "connpool" and len(parts) > 1 and not parts[1].startswith("__"):
                found.add(parts[1])
    return found


SOURCES = sorted(TOP.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_importDirection(path):
    room = path.relative_to(TOP).parts[0].removesuffix(".py")
    if room == "__init__":
        assert imports(path) == set()
        return
    assert imports(path) <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(TOP)))
def test_noGlobalReactorAtModuleLevel(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module == "twisted.internet":
            assert "reactor" not in [alias.name for alias in node.names]
        assert "twisted.internet.reactor" not in ast.unparse(node).split("def ")[0]
