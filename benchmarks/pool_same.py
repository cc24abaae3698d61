"""
The package index's connpool; run by C{benchmarks/pool.py} in an environment where
that is what C{import connpool} means.

    python benchmarks/pool_same.py CYCLES [--storm CANCELS]
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

NAME = "connpool 1.0.14 (package index)"


def make(size: int) -> Any:
    """
    @return: a pool of stubs.
    """
    from connpool import AsyncCallableFactory, AsyncConnectionPool, PoolConfig

    class Stub:
        """
        A connection.
        """

    async def close(_: Any) -> None:
        pass

    factory = AsyncCallableFactory(Stub, close=close)
    return AsyncConnectionPool(factory, PoolConfig(max_size=size))


async def cycle(count: int) -> dict[str, float]:
    """
    @return: name to microseconds for a cycle.
    """
    pool = make(10)
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


async def storm(cancels: int) -> dict[str, Any]:
    """
    The same as C{storm} in C{benchmarks/pool.py}.
    """
    pool = make(8)
    dice = random.Random(1)

    async def client() -> None:
        async with pool.connection():
            await asyncio.sleep(0)

    done = 0
    start = time.perf_counter()
    while done < cancels:
        done += 100
        tasks = [asyncio.ensure_future(client()) for _ in range(200)]
        for index, victim in enumerate(dice.sample(tasks, 100)):
            victim.cancel()
            if index % 10 == 0:
                await asyncio.sleep(0)
        _, stuck = await asyncio.wait(tasks, timeout=2)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if stuck:
            break
    took = time.perf_counter() - start
    held: list[int] = []

    async def keeper() -> None:
        async with pool.connection():
            held.append(1)
            await asyncio.sleep(2)

    keepers = [asyncio.ensure_future(keeper()) for _ in range(8)]
    await asyncio.wait(keepers, timeout=0.5)
    for task in keepers:
        task.cancel()
    await asyncio.gather(*keepers, return_exceptions=True)
    return {NAME: {"cancels": done, "us": took / done * 1e6, "lost": 8 - len(held)}}


if __name__ == "__main__":
    work = storm(int(sys.argv[3])) if "--storm" in sys.argv else cycle(int(sys.argv[1]))
    print(json.dumps(asyncio.run(work)))
