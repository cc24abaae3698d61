"""
The files that a maintainer's tools read.
"""

import configparser
import os
import re
import subprocess
import sys
import tomllib

import pytest

import connpool
from tests.helpers.processes import CHECKOUT

SETUP = configparser.ConfigParser()
SETUP.read(CHECKOUT / "setup.cfg")


def test_oneHomeForTheMetadata():
    pyproject = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    assert set(pyproject) == {"build-system"}


def test_metadata():
    metadata = SETUP["metadata"]
    for name in ("author", "author_email", "project_urls", "keywords", "license"):
        assert metadata[name].strip()
    classifiers = metadata["classifiers"].split("\n")
    for version in ("3.11", "3.12", "3.13", "3.14"):
        assert f"Programming Language :: Python :: {version}" in classifiers
    assert any(line.startswith("Topic :: ") for line in classifiers)


def test_newsFragmentsHaveTypes():
    settings = tomllib.loads((CHECKOUT / "towncrier.toml").read_text())["tool"]["towncrier"]
    types = [each["directory"] for each in settings["type"]]
    assert types == ["feature", "bugfix", "doc", "removal", "misc"]
    fragments = CHECKOUT / settings["directory"]
    for path in fragments.iterdir():
        if path.name not in {"README.rst", ".gitignore"}:
            assert re.fullmatch(rf"\+[\w-]+\.({'|'.join(types)})\.rst", path.name), path
            assert path.read_text().strip(), path
    changes = (CHECKOUT / settings["filename"]).read_text()
    assert changes.count("\n.. towncrier release notes start\n") == 1


def test_preCommitRunsTheSameRuff():
    (pinned,) = re.findall(r"ruff == (\S+)", SETUP["options.extras_require"]["lint"])
    assert f"rev: v{pinned}\n" in (CHECKOUT / ".pre-commit-config.yaml").read_text()


def test_theVersionIsNotReleased():
    """
    Two different programs must not call themselves by one name.
    """
    released = {path.name for path in (CHECKOUT / "tests/transfer/released").iterdir()}
    assert connpool.__version__ not in released


def test_everythingThatIsKeptIsInTheSourceArchive(tmp_path):
    """
    MANIFEST.in leaves nothing out that git has; where there is no git, this
    runs from such an archive.
    """
    pytest.importorskip("setuptools", reason="setuptools is not installed; run: make test")
    try:
        kept = subprocess.run(
            ["git", "ls-files", "-z"], cwd=CHECKOUT, check=True, capture_output=True, timeout=60
        ).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        kept = ""
    command = [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "egg_info"]
    subprocess.run(
        [*command, f"--egg-base={tmp_path}"],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    listed = (tmp_path / "twisted_connpool.egg-info/SOURCES.txt").read_text().splitlines()
    packed = {os.path.normpath(name) for name in listed}
    left = {name for name in kept.split("\0") if name} - packed
    assert left <= {".gitignore"}
    assert "tests/test_packaging.py" in packed
