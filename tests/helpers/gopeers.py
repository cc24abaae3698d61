"""
The tutorial's Go programs, compiled once a run.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

PEERS = Path(__file__).parent.parent / "peers"


@cache
def goProgram(name: str) -> Path:
    """
    Compile C{tests/peers/NAME.go}.
    """
    target = Path(tempfile.mkdtemp(prefix="connpool-go-")) / name
    subprocess.run(
        ["go", "build", "-o", str(target), str(PEERS / f"{name}.go")],
        check=True,
        timeout=300,
        env={**os.environ, "GO111MODULE": "off", "CGO_ENABLED": "0"},
    )
    return target
