"""
Looking after uploads whose holders are gone.

Any receiver does that, and several may at once.  Ages are the engine's: the time from the last
record of a log to the answer of a listing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from connpool.transfer.stores.s3.calls import ABSENT, Done, Get, Match, Put, pages
from connpool.transfer.stores.s3.layout import Layout, newToken
from connpool.transfer.stores.s3.lifecycle import Lifecycle
from connpool.transfer.stores.s3.uploadlog import readLog, takeOver

__all__ = ["Reaper"]

#: Seconds after which a commit that is not over is finished by somebody else.
FINISH_SECONDS = 60.0


class Reaper:
    """
    Passes over all logs.

    @param keepSeconds: that a partial is kept after its last record, and the last record of an
        upload after its end.
    """

    def __init__(self, layout: Layout, lifecycle: Lifecycle, keepSeconds: float) -> None:
        self._layout = layout
        self._lifecycle = lifecycle
        self._keep = keepSeconds

    async def mayBegin(self, seconds: float) -> bool:
        """
        Tell whether a pass is due, of all receivers together; if so, it is this one's.

        @param seconds: from one pass to the next.
        """
        key, mark = f"{self._layout.private}reaper", newToken().encode()
        found = await Get(key)
        if found and found.age < seconds:
            return False
        condition = Match(found.etag) if found else ABSENT
        return isinstance(await Put(key, mark, condition), Done)

    async def logs(self) -> AsyncIterator[tuple[str, int, float]]:
        """
        Yield the token of every log, the number of its records, and the seconds since the last
        of them.
        """
        token, count, newest, date = "", 0, 0.0, 0.0
        async for page in pages(self._layout.logs):
            for entry in page.entries:
                of = entry.key.removeprefix(self._layout.logs).partition("/")[0]
                if token and of != token:
                    yield token, count, page.date - newest
                    count, newest = 0, 0.0
                token, count, newest = of, count + 1, max(newest, entry.modified)
            date = page.date
        if token:
            yield token, count, date - newest

    async def lookAfter(self, token: str, count: int, age: float) -> bool:
        """
        Finish what is to be finished, and remove what is too old.

        @param count: the number of its records.
        @param age: seconds since the last one.
        @return: whether something was done.
        """
        isOld = age >= self._keep
        if age < FINISH_SECONDS or (count == 1 and not isOld):
            return False  # in use, or just begun, or ended long ago
        upload = await readLog(self._layout, token)
        if isOld and (upload is None or upload.end):
            await self._lifecycle.forget(token, upload)
        elif upload is None:
            return False
        elif upload.end:
            await self._lifecycle.clear(upload)
        elif upload.commit is None and not isOld:
            return False
        else:
            return await self._end(token)
        return True

    async def _end(self, token: str) -> bool:
        upload = await takeOver(self._layout, token)
        if upload is None:
            return False
        if upload.commit is None:
            await self._lifecycle.remove(upload)
            return True
        offer, commit = upload.begin.asOffer(), upload.commit
        receipt = await self._lifecycle.publish(upload, offer, commit.content, commit.receipt)
        await self._lifecycle.retire(upload, commit.content, receipt)
        return True
