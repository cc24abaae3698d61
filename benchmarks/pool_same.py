"""
One round with the package index's connpool; run by C{benchmarks/pool.py} in an
environment where that is what C{import connpool} means.
"""

from __future__ import annotations

import time
from typing import Any

NAME = "connpool 1.0.14 (package index)"


async def run(count: int) -> dict[str, float]:
    """
    @return: name to microseconds for a cycle.
    """
    from connpool import AsyncCallableFactory, AsyncConnectionPool, PoolConfig

    class Stub:
        """
        A connection.
        """

    async def make() -> Any:
        return Stub()

    async def close(_: Any) -> None:
        pass

    pool = AsyncConnectionPool(AsyncCallableFactory(make, close=close), PoolConfig(max_size=10))
    for _ in range(200):
        async with pool.connection():
            pass
    start = time.perf_counter()
    for _ in range(count):
        async with pool.connection():
            pass
    took = time.perf_counter() - start
    await pool.close()
    return {NAME: took / count * 1e6}
