import importlib.util
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_theTableOfMetricsIsTheCodes():
    spec = importlib.util.spec_from_file_location("metrics_table", DOCS / "metrics_table.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    text = program.PAGE.read_text()
    assert program.page(text) == text, "run: python docs/metrics_table.py"
    assert "connpool_transfer_received_bytes_total" in text
