import importlib.util
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest

import connpool
from connpool.observe import describeFields

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("metrics_table", DOCS / "metrics_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_thePageHasTheMetricsOfTheCode(program):
    source = [(DOCS / "observe.rst").read_text()]
    program.insert(None, "observe", source)
    for kind, (title, snapshotClass) in program.KINDS.items():
        assert title in source[0]
        for field in describeFields(kind, snapshotClass):
            assert f"``{field.metric}``" in source[0]
    assert program.MARK not in source[0]
    assert "``connpool_pool_closed_total`` ``{reason=}``" in source[0]


def test_everyKindOfSourceIsThere(program):
    kinds = set()
    for module in pkgutil.walk_packages(connpool.__path__, "connpool."):
        if module.name.endswith("__main__") or ".testing" in module.name:
            continue
        for value in vars(import_module(module.name)).values():
            if isinstance(value, type) and hasattr(value, "stats"):
                kinds.add(getattr(value, "kind", None))
    assert {kind for kind in kinds if isinstance(kind, str)} <= set(program.KINDS)
