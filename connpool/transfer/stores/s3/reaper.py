"""
Looking after uploads whose holders are gone.

Any receiver does that, and several may at once.  Ages are the engine's: the time from the last
record of a log to the answer of a listing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from connpool.transfer.stores.s3.calls import ABSENT, Done, Found, Get, List, Match, Put
from connpool.transfer.stores.s3.claims import newToken
from connpool.transfer.stores.s3.layout import Layout
from connpool.transfer.stores.s3.lifecycle import Lifecycle
from connpool.transfer.stores.s3.uploadlog import Log, Upload, clear, forget, readLog, takeOver

__all__ = ["FINISH_SECONDS", "Reaper"]

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
        if isinstance(found, Found) and found.age < seconds:
            return False
        condition = Match(found.etag) if isinstance(found, Found) else ABSENT
        return isinstance(await Put(key, mark, condition), Done)

    async def logs(self) -> AsyncIterator[tuple[str, int, float]]:
        """
        Yield the token of every log, the number of its records, and the seconds since the last
        of them.
        """
        token, count, newest, date, after = "", 0, 0.0, 0.0, ""
        more = True
        while more:
            page = await List(self._layout.logs, after)
            more, date = page.more, page.date
            for entry in page.entries:
                after = entry.key
                of = after.removeprefix(self._layout.logs).partition("/")[0]
                if of != token:
                    if token:
                        yield token, count, date - newest
                    token, count, newest = of, 0, 0.0
                count += 1
                newest = max(newest, entry.modified)
        if token:
            yield token, count, date - newest

    async def lookAfter(self, token: str, count: int, age: float) -> bool:
        """
        Finish what is to be finished, and remove what is too old.

        @param count: the number of its records.
        @param age: seconds since the last one.
        @return: whether something was done.
        """
        if age < FINISH_SECONDS or (count == 1 and age < self._keep):
            return False  # in use, or just begun, or ended long ago
        upload = await readLog(self._layout, token)
        if upload is None or upload.begin is None or (upload.end and age >= self._keep):
            if age >= self._keep:
                await forget(self._layout, upload or Upload(token))
            return age >= self._keep
        if upload.end:
            await clear(self._layout, upload)
            return True
        if upload.commit is None and age < self._keep:
            return False
        taken = await takeOver(self._layout, token)
        if taken is None or taken.begin is None:
            return False
        log = Log(self._layout, taken)
        if taken.commit is None:
            await self._lifecycle.remove(log)
            return True
        commit = taken.commit
        offer, content = taken.begin.asOffer(), commit.content
        receipt = await self._lifecycle.publish(log, offer, content, commit.receipt)
        await self._lifecycle.retire(log, content, receipt)
        return True
