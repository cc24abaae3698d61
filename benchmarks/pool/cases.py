"""
Contestants of the pool's suite: a measure of a peer, on the one loop of this process, or
in a process of its own.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import attrs

from benchmarks.processes import CHECKOUT, Failed

__all__ = ["SAME_NAME", "Case", "Elsewhere", "theLoop"]

#: A measure that takes longer hangs: the longest, a million cancels, takes a fifth of it.
LIMIT_SECONDS = 900

#: The package index's project whose import name is ours.
SAME_NAME = "connpool==1.0.14"


@cache
def theLoop() -> asyncio.AbstractEventLoop:
    """
    Return the loop, which is the reactor's as well.
    """
    from twisted.internet import asyncioreactor

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    asyncioreactor.install(loop)
    return loop


@attrs.frozen
class Case:
    """
    @ivar kind: of the peer.
    @ivar measure: called with it and C{numbers}.
    """

    name: str
    kind: Any
    measure: Callable[..., Any]
    numbers: tuple[Any, ...] = ()

    def missing(self) -> str | None:
        package = self.kind.package
        if package and importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed (--install installs it)"
        return None

    def once(self) -> dict[str, float]:
        measuring = asyncio.wait_for(self.measure(self.kind, *self.numbers), LIMIT_SECONDS)
        try:
            return theLoop().run_until_complete(measuring)  # type: ignore[no-any-return]  # not typed
        except TimeoutError:
            raise Failed(f"{self.name} is not done within {LIMIT_SECONDS} s") from None


@attrs.frozen
class Elsewhere:
    """
    A measure of the package index's connpool, which cannot be here as well.

    @ivar python: of an environment that has it; L{None} if there is none.
    @ivar what: a name in C{measures}.
    @ivar without: why there is none.
    """

    python: Path | None
    what: str
    numbers: tuple[int, ...] = ()
    name: str = "connpool 1.0.14 (package index)"
    without: str = "it shares our import name and wants an environment (--install makes it)"

    def missing(self) -> str | None:
        return self.without if self.python is None else None

    def once(self) -> dict[str, float]:
        script = CHECKOUT / "benchmarks" / "pool" / "samename.py"
        try:
            done = subprocess.run(
                [str(self.python), str(script), self.what, *map(str, self.numbers)],
                check=False,
                capture_output=True,
                text=True,
                timeout=LIMIT_SECONDS,
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} is not done within {LIMIT_SECONDS} s") from None
        if done.returncode:
            raise Failed(f"{self.name}: {done.stderr}")
        return json.loads(done.stdout)  # type: ignore[no-any-return]  # JSON is Any
