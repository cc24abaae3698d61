"""
Deadlines in one heap, so that a pool needs one timer.
"""

from __future__ import annotations

import heapq
import math
from typing import Protocol

__all__ = ["NEVER", "Agenda", "Due"]

#: Later than every time.
NEVER = math.inf


class Due(Protocol):
    """
    Something with a deadline.

    @ivar deadline: when it is due; L{NEVER} while it is on no agenda.
    """

    deadline: float


class Agenda:
    """
    Deadlines, the earliest first.

    An entry is valid while its item still has the deadline that it was entered
    with; cancelling only forgets that.  Entries that became invalid are swept
    out once they are more than half, so memory follows what is waited for, at
    O(log n) amortised an entry (golang/go#76784).
    """

    __slots__ = ("_heap", "_invalid", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Due]] = []
        self._serial = 0
        self._invalid = 0

    def __len__(self) -> int:
        return len(self._heap) - self._invalid

    def enter(self, item: Due, when: float) -> None:
        """
        Make C{item} due at C{when}, in place of what it was due at before.
        """
        if item.deadline != NEVER:
            self.cancel(item)
        item.deadline = when
        if when != NEVER:
            self._serial += 1
            heapq.heappush(self._heap, (when, self._serial, item))

    def cancel(self, item: Due) -> None:
        """
        Forget C{item}, if it is due at all.
        """
        if item.deadline == NEVER:
            return
        item.deadline = NEVER
        self._invalid += 1
        if self._invalid > 64 and self._invalid * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].deadline == entry[0]]
            heapq.heapify(self._heap)
            self._invalid = 0

    def first(self) -> float:
        """
        When the next item is due; L{NEVER} if none is.
        """
        heap = self._heap
        while heap:
            when, _, item = heap[0]
            if item.deadline == when:
                return when
            heapq.heappop(heap)
            self._invalid -= 1
        return NEVER

    def pop(self, now: float) -> Due | None:
        """
        Take one item that is due by C{now}.
        """
        if self.first() > now:
            return None
        item = heapq.heappop(self._heap)[2]
        item.deadline = NEVER
        return item
