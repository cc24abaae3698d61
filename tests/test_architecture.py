"""
The picture that the imports draw: each room imports lower floors only.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

TOP = Path(__file__).parent.parent / "connpool"

#: Room to the rooms it may import, beside itself.
GROUND = {
    *("errors", "interfaces", "waiting", "tokenbucket", "logonce", "sendqueue", "addresses"),
    *("frozen", "regularfiles", "later", "tlstransport", "tlslending", "sizes"),
}
OUTER = {"proxyprotocol", "pool", "transfer", "datagram", "observe", "standardstreams"}
MAY_IMPORT = {
    "errors": set(),
    "waiting": set(),
    "tokenbucket": set(),
    "logonce": set(),
    "frozen": set(),
    "sendqueue": set(),
    "sizes": set(),
    "standardstreams": set(),
    "regularfiles": set(),
    "later": set(),
    "tlslending": set(),
    "tlstransport": {"tlslending"},
    "interfaces": {"errors"},
    "addresses": {"errors", "interfaces", "later", "regularfiles", "tlstransport", "tlslending"},
    "proxyprotocol": GROUND,
    "pool": GROUND,
    "transfer": GROUND,
    "datagram": GROUND,
    "observe": GROUND,
    "services": GROUND | OUTER,
    "commands": GROUND | OUTER | {"services"},
    "testing": GROUND | {"pool", "transfer", "datagram", "proxyprotocol"},
    # the interface of stores, when it is asked for
    "plugin": {"interfaces"},
    "__main__": {"commands"},
}


#: Folders of the transfer room, and what else of the room each may import.  The
#: modules that lie in the room itself are what both ends share.
SHARED = {""}
LEGS = {
    "": set(),
    "wire": SHARED,
    "stores": SHARED,
    "receive": SHARED | {"wire", "stores"},
    "send": SHARED | {"wire"},
    # a session like a sender's
    "fetch": SHARED | {"wire", "send"},
    # of wire only the deadline of a peer
    "web": SHARED | {"receive", "stores", "wire"},
}

#: Circles of imports inside a room, type-only ones included, and the reason for each.
CIRCLES: dict[frozenset[str], str] = {}

#: Private names of other projects that we use, and the reason for each.
FOREIGN: dict[str, str] = {
    "globalLogPublisher._observers": "twistd's log file is to be reopened, and has no other owner",
    "options._dispatch": "usage.Options tells by it alone which options may be repeated",
    "observer._outFile": "the same; FileLogObserver does not tell its file",
    "endpoints._SystemdParser": "Twisted keeps the sockets that systemd passed there",
    "endpoints._SystemdParser._sddaemon": "and there is no public way to them",
    "inherited._names": "and two of them may have one name",
}

OPENINGS = ("What", "Which", "Who", "Whom", "How", "Where", "Whether")

SOURCES = sorted(TOP.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}


def moduleOf(path: Path) -> str:
    parts = path.relative_to(TOP.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {moduleOf(path): path for path in SOURCES}


def imported(path: Path, *, typesToo: bool) -> set[str]:
    """
    Our modules that a file imports, late imports included.
    """
    tree = TREES[path]
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
        if not typesToo
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inside}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def imports(path: Path) -> set[str]:
    """
    The rooms a file imports at run time.
    """
    names = [name.split(".") for name in imported(path, typesToo=False)]
    return {parts[1] for parts in names if len(parts) > 1}


def test_importDirection():
    above = {}
    for path in SOURCES:
        room = path.relative_to(TOP).parts[0].removesuffix(".py")
        allowed = set() if room == "__init__" else MAY_IMPORT[room] | {room}
        above[moduleOf(path)] = imports(path) - allowed
    assert {module: rooms for module, rooms in above.items() if rooms} == {}


def importsReactor(node: ast.stmt) -> bool:
    """
    Whether a statement, which is no function, imports the global reactor.
    """
    if isinstance(node, ast.ImportFrom) and node.module == "twisted.internet":
        return "reactor" in [alias.name for alias in node.names]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return "twisted.internet.reactor" in ast.unparse(node).split("def ")[0]


def test_noGlobalReactorAtModuleLevel():
    assert [path for path, tree in TREES.items() if any(map(importsReactor, tree.body))] == []


def legOf(module: str) -> str:
    parts = module.split(".")
    return parts[2] if len(parts) > 2 and parts[2] in LEGS else ""


def test_legsOfTheWayOfAFile():
    outside = {}
    # the package itself names them all, for whoever asks
    for path in set((TOP / "transfer").rglob("*.py")) - {TOP / "transfer" / "__init__.py"}:
        leg = legOf(moduleOf(path))
        legs = {
            legOf(name)
            for name in imported(path, typesToo=True)
            if name.startswith("connpool.transfer.")
        }
        outside[moduleOf(path)] = legs - LEGS[leg] - {leg}
    assert {module: legs for module, legs in outside.items() if legs} == {}


def circles() -> set[frozenset[str]]:
    """
    The modules of each room that can be reached from themselves.
    """
    reached = {}
    for module, path in MODULES.items():
        room = module.split(".")[1:2]
        reached[module] = {
            name
            for name in imported(path, typesToo=True)
            if name.split(".")[1:2] == room and room and name.count(".") > 1 and name != module
        }
    reached = {name: to for name, to in reached.items() if name.count(".") > 1}
    packages = {moduleOf(path) for path in SOURCES if path.name == "__init__.py"}
    reached = {
        name: {other for other in to if other not in packages}
        for name, to in reached.items()
        if name not in packages
    }
    growing = True
    while growing:
        growing = False
        for to in reached.values():
            more = set().union(*(reached[name] for name in to)) - to if to else set()
            if more:
                to |= more
                growing = True
    return {
        frozenset(other for other in to if name in reached[other])
        for name, to in reached.items()
        if name in to
    }


def test_noCirclesInsideARoom():
    assert circles() == set(CIRCLES)


def foreignPrivates(tree: ast.Module) -> set[str]:
    """
    Private attributes that a file takes from objects whose class it does not define.
    """
    own = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in {"self", "cls"}
        ):
            own.add(node.attr)
    return {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
        and node.attr not in own
    }


def test_nobodyUsesTheUnderscoreNamesOfOthers():
    found = {name for tree in TREES.values() for name in foreignPrivates(tree)}
    assert found == set(FOREIGN)


def test_docstringsOpenWithANounOrAVerb():
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        (moduleOf(path), text)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, nodes)
        and (text := ast.get_docstring(node) or "").split(" ", 1)[0].rstrip(",:.") in OPENINGS
    ]
    assert found == []


def test_eachExceptionFromARuleSaysWhy():
    rules = re.compile(r"# (type: ignore|noqa)(?!\[[a-z-]+\]  # \w|: [A-Z0-9, ]+ - \w)")
    folders = ("benchmarks", "connpool", "examples", "tests", "twisted")
    found = [
        f"{path}: {line.strip()}"
        for folder in folders
        for path in (TOP.parent / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if rules.search(line)
    ]
    assert found == []


#: Files that are longer than 600 lines, and the reason for each.
LONG = {"connpool.interfaces": "each contract once, where a reader of any room looks for it"}


def test_aFileIsOneConcept():
    long = {moduleOf(path) for path in SOURCES if len(path.read_text().splitlines()) > 600}
    assert long == set(LONG)
