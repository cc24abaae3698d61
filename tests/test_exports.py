"""
The public names: a name that goes or comes is a decision, not an accident.
"""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import connpool.services


def publicNames() -> dict[str, set[str]]:
    """
    The names that F{publicnames.txt} lists, by package.
    """
    found: dict[str, set[str]] = {}
    for line in Path(__file__).with_name("publicnames.txt").read_text().splitlines():
        if line.startswith("["):
            found[line.strip("[]")] = names = set()
        elif line and not line.startswith("#"):
            names.add(line)
    return found


PUBLIC = publicNames()


@pytest.mark.parametrize("module", PUBLIC)
def test_publicNames(module):
    assert set(import_module(module).__all__) == PUBLIC[module]


@pytest.mark.parametrize("module", [*PUBLIC, "connpool.errors", "connpool.interfaces"])
def test_everyPublicNameExists(module):
    loaded = import_module(module)
    for name in loaded.__all__:
        assert getattr(loaded, name) is not None


SOURCES = sorted(Path(connpool.services.__file__).parent.parent.rglob("*.py"))


def returned(tree):
    """
    The functions and methods with public names, each with the names in its return type.
    """
    owners = [tree, *(each for each in tree.body if isinstance(each, ast.ClassDef))]
    for owner in owners:
        if getattr(owner, "name", "").startswith("_"):
            continue
        for each in owner.body:
            isFunction = isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            if isFunction and not each.name.startswith("_") and each.returns is not None:
                words = re.findall(r"\w+", ast.unparse(each.returns))
                yield each.name, words


def test_publicFunctionsReturnPublicTypes():
    hidden = {}
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        defined = {each.name for each in tree.body if isinstance(each, ast.ClassDef)}
        public = {
            name
            for each in tree.body
            if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__all__"
            for name in ast.literal_eval(each.value)
        }
        for name, words in returned(tree):
            if private := (defined - public).intersection(words):
                hidden[f"{path}: {name}"] = private
    assert hidden == {}


def test_theServicesPackageIsLight():
    code = "import sys, connpool.services; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()
    assert not [name for name in loaded if name.startswith(("twisted.", "connpool.transfer"))]
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        connpool.services.Nothing  # noqa: B018 - asked for
