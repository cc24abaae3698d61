"""
A folder whose names are one name elsewhere, sent by real commands.
"""

import pytest

from tests.helpers.receiving import Receiving


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.mkdir()
    (path / "Makefile").write_bytes(b"one")
    (path / "makefile").write_bytes(b"two")
    if len(list(path.iterdir())) == 1:
        pytest.skip("this file system folds case")
    return path


@pytest.mark.parametrize("durability", ["none", "full"])
def test_theSecondIsNumbered(tmp_path, source, durability):
    with Receiving(tmp_path) as receiving:
        done = receiving.send(source, durability=durability)
        assert done.returncode == 0, done.stderr
        files = receiving.files()
        assert sorted(files.values()) == [b"one", b"two"]
        assert set(files) in (
            {"source/Makefile", "source/makefile (1)"},
            {"source/makefile", "source/Makefile (1)"},
        )


def test_theSecondIsRefused(tmp_path, source):
    with Receiving(tmp_path, "--if-exists", "refuse") as receiving:
        done = receiving.send(source)
        assert done.returncode == 4, done.stderr
        [name] = receiving.files()
        assert name.lower() == "source/makefile"
        [line] = [line for line in done.stderr.splitlines() if "differs only" in line]
        assert '"Makefile"' in line
        assert '"makefile"' in line
        assert "--names posix" in line


def test_posixKeepsBoth(tmp_path, source):
    (source / "Docs").mkdir()
    (source / "docs").mkdir()
    (source / "Docs/x").write_bytes(b"three")
    (source / "docs/x").write_bytes(b"four")
    with Receiving(tmp_path, "--names", "posix") as receiving:
        done = receiving.send(source)
        assert done.returncode == 0, done.stderr
        assert receiving.files() == {
            "source/Makefile": b"one",
            "source/makefile": b"two",
            "source/Docs/x": b"three",
            "source/docs/x": b"four",
        }
