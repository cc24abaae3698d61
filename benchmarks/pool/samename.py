"""
The package index's connpool; run in an environment where that is what C{import connpool}
means.

    python benchmarks/pool/samename.py cycle|contended|storm|spike|stale [NUMBER...]
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

# before the checkout is on the path, where the name is ours
from connpool import AsyncCallableFactory, AsyncConnectionPool, PoolConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from benchmarks.pool import measures
from benchmarks.pool.peers import Peer


class SameName(Peer):
    name = "connpool 1.0.14 (package index)"

    async def start(self) -> None:
        async def close(_: Any) -> None:
            pass

        async def validate(one: Any) -> bool:
            return not one.closed

        def fatal(error: BaseException) -> bool:
            return isinstance(error, ConnectionError)

        factory = AsyncCallableFactory(
            self.make, close=close, validate=validate, is_fatal_error=fatal
        )
        self.pool = AsyncConnectionPool(factory, PoolConfig(max_size=self.size))
        self.use = self.pool.connection

    async def stop(self) -> None:
        await self.pool.close()


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    measuring = getattr(measures, what)(SameName, *map(int, numbers))
    print(json.dumps(asyncio.run(measuring)))
