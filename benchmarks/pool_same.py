"""
The package index's connpool; run by C{benchmarks/pool.py} in an environment where
that is what C{import connpool} means.

    python benchmarks/pool_same.py cycle|contended|storm|spike|stale [NUMBER...]
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pool
from pool_peers import Peer


class SameName(Peer):
    name = "connpool 1.0.14 (package index)"

    async def start(self) -> None:
        from connpool import AsyncCallableFactory, AsyncConnectionPool, PoolConfig

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


async def measure(what: str, *numbers: int) -> dict[str, Any]:
    """
    @return: what C{pool.py} measures of this peer.
    """
    if what == "cycle":
        of = await pool.cycle([SameName], 1, *numbers, dict)
        return {name: figures[0] for name, figures in of.items()}
    return await getattr(pool, what)([SameName], *numbers)  # type: ignore[no-any-return]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], *map(int, sys.argv[2:])))))
