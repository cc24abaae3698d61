import importlib.util
from pathlib import Path

import attrs

from connpool.observe import describeFields

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_thePageHasTheMetricsOfTheCode():
    spec = importlib.util.spec_from_file_location("metrics_table", DOCS / "metrics_table.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    source = [(DOCS / "observe.rst").read_text()]
    program.insert(None, "observe", source)
    assert program.MARK not in source[0]
    classes = program.snapshotClasses()
    assert {"transfer", "listener", "tcp", "proxy", "datagram", "pool"} <= set(classes)
    for kind, snapshotClass in classes.items():
        assert attrs.has(snapshotClass), f"stats() of kind {kind} is not annotated"
        for field in describeFields(kind, snapshotClass):
            assert f"``{field.metric}``" in source[0]
    assert "``connpool_pool_closed_total`` ``{reason=}``" in source[0]
