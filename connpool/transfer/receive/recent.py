"""
The last files of a reception, and a log of refusals that nobody can flood.

Theory of operation
===================
A file that was stored, or failed halfway, is a line in the log.  An offer that was
refused, or never brought a byte, is one only at first: a sender that repeats its
mistake ten thousand times a minute gets one line a minute for each error code, with
the number of those left out.  So is a file that came wholly and could not be stored, as
ten thousand cannot if the disk is full.  The last L{KEPT_TRANSFERS} of each are kept here
in any case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from twisted.logger import Logger

from connpool.errors import (
    AuthenticationFailed,
    Busy,
    NoInodes,
    NoSpace,
    Skipped,
    StoreError,
    TransferError,
)
from connpool.logonce import LogRarely
from connpool.transfer.names import displayName
from connpool.transfer.records import EndedTransfer, Offer, Receipt

__all__ = ["KEPT_TRANSFERS", "RecentTransfers"]

#: Files that are kept, and as many refusals.
KEPT_TRANSFERS = 50
#: Codes of what is wrong with the receiver.
_OURS = frozenset({NoSpace.code, NoInodes.code, StoreError.code, Busy.code})


class RecentTransfers:
    """
    The last transfers of one reception.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @ivar files: those that came, the newest last; of those that are stored the receipt and
        the sender, for small files are many and are looked at rarely.
    """

    _log = Logger("connpool.transfer.receive.reception.Reception")

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.files: deque[EndedTransfer | tuple[Receipt, str]] = deque(maxlen=KEPT_TRANSFERS)
        self._refusals: deque[EndedTransfer] = deque(maxlen=KEPT_TRANSFERS)
        self._logs: dict[str, tuple[LogRarely, dict[str, Any]]] = {}

    def failed(self, offer: Offer, peer: str, count: int, why: BaseException) -> None:
        """
        Keep and log a file that ended without being published.  Of those that never
        brought a byte there may be as many as of refusals.

        @param count: bytes that came.
        """
        code, text = getattr(why, "code", "error"), str(why) or type(why).__name__
        skipped = isinstance(why, Skipped)
        now, name = self._clock.seconds(), str(offer.name)
        # not the exception itself: its traceback keeps buffers alive
        result = "skipped" if skipped else "failed"
        self.files.append(
            EndedTransfer(
                *(now, name, count, peer, result, None, offer.transferId, f"{code}: {text}")
            )
        )
        fields = {"name": name, "peer": peer, "why": text, "id": offer.transferId, "count": count}
        template = "{name} from {peer} after {count} bytes: {code}: {why}, id {id}"
        template = f"{'skipped' if skipped else 'did not receive'} {template}"
        # what keeps a whole one from being stored keeps the next one, too
        repeats = not count or (count == offer.size and code in _OURS)
        if skipped or not repeats:
            self._log.info(template, code=code, **fields)
        else:
            self._say(code, template, fields, now)

    def refused(
        self, name: str, peer: str, why: TransferError, transferId: str | None = None
    ) -> None:
        """
        Keep an offer that was turned away, and log it unless there are many.

        @param name: as L{displayName} gives it.
        """
        now = self._clock.seconds()
        self._refusals.append(
            EndedTransfer(now, name, None, peer, "refused", None, transferId, f"{why.code}: {why}")
        )
        fields = {"name": name, "peer": peer, "why": str(why), "id": transferId}
        template = "refused {name} from {peer}: {code}: {why}" + (", id {id}" if transferId else "")
        self._say(why.code, template, fields, now)

    def deniedEntry(self, peer: str) -> None:
        """
        Keep a sender whose credentials were refused, and log it unless there are many.
        """
        now, code = self._clock.seconds(), AuthenticationFailed.code
        why = f"{code}: user or password is wrong"
        self._refusals.append(EndedTransfer(now, "", None, peer, "refused", None, None, why))
        self._say(code, "refused the credentials of {peer}", {"peer": peer}, now)

    def _say(self, code: str, template: str, fields: dict[str, Any], now: float) -> None:
        if code not in self._logs:
            latest: dict[str, Any] = {}

            def say(text: str, unsaid: int) -> None:
                more = "; {unsaid} more with this code since the last such line" if unsaid else ""
                self._log.info(text + more, code=code, unsaid=unsaid, **latest)

            self._logs[code] = LogRarely(say), latest
        log, latest = self._logs[code]
        latest.clear()
        latest.update(fields)
        log.happened(template, now)

    def flush(self) -> None:
        """
        Log what was only counted: the reception stops.
        """
        for log, _ in self._logs.values():
            log.flush()

    def latest(self) -> Sequence[EndedTransfer]:
        """
        @return: the last files and the last refusals, of both the newest first.
        """
        files = [
            kept if isinstance(kept, EndedTransfer) else _stored(*kept)
            for kept in reversed(self.files)
        ]
        return [*files, *reversed(self._refusals)]


def _stored(receipt: Receipt, peer: str) -> EndedTransfer:
    return EndedTransfer(
        receipt.finished,
        displayName(receipt.name),
        receipt.size,
        peer,
        receipt.status,
        receipt.durability,
        receipt.transferId,
    )
