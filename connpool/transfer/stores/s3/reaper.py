"""
Looking after uploads whose holders are gone.

Any receiver does that, and several may at once.  Ages are the engine's: the time from the last
record of a log to the answer of a listing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from connpool.transfer.stores.s3.calls import Entry, List
from connpool.transfer.stores.s3.layout import Layout
from connpool.transfer.stores.s3.lifecycle import Lifecycle
from connpool.transfer.stores.s3.uploadlog import Log, Upload, clear, forget, readLog, takeOver

__all__ = ["FINISH_SECONDS", "Reaper"]

#: Seconds after which a commit that is not over is finished by somebody else.
FINISH_SECONDS = 60.0


class Reaper:
    """
    One pass over all logs.

    @param keepSeconds: that a partial is kept after its last record, and the last record of an
        upload after its end.
    """

    def __init__(self, layout: Layout, lifecycle: Lifecycle, keepSeconds: float) -> None:
        self._layout = layout
        self._lifecycle = lifecycle
        self._keep = keepSeconds

    async def tokens(self) -> AsyncIterator[str]:
        """
        Yield the token of every log.
        """
        after = ""
        while entries := (await List(self._layout.logs, after, 1)).entries:
            token = entries[0].key.removeprefix(self._layout.logs).partition("/")[0]
            yield token
            after = self._layout.log(token) + "~"

    async def lookAfter(self, token: str) -> bool:
        """
        Finish what is to be finished, and remove what is too old.

        @return: whether something was done.
        """
        entries, age = await self._age(token)
        if not entries or age < FINISH_SECONDS:
            return False
        if len(entries) == 1 and age < self._keep:
            return False  # just begun, or ended long ago
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

    async def _age(self, token: str) -> tuple[list[Entry], float]:
        """
        Return the records of a log, and the seconds since the last one.
        """
        entries: list[Entry] = []
        while True:
            page = await List(self._layout.log(token), entries[-1].key if entries else "")
            entries += page.entries
            if not page.more:
                break
        newest = max((entry.modified for entry in entries), default=0.0)
        return entries, page.date - newest
