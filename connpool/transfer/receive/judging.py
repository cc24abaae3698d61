"""
Judging before publishing: the listeners that are asked whether a file may have its name.

Theory of operation
===================
All bytes of a file are here and verified when it is judged, and it has no name: a large one
lies in its partial, which is made to survive a restart first, a small one in memory.  A judge
lets it pass, refuses it for good (L{HookRefused}), or holds it (L{Held}, and any other failure):
then the sender comes again, and what can be resumed is not sent again.  Nothing is published
that no judge has let pass, so a death in between is a hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from connpool.errors import Held, HookRefused
from connpool.interfaces import ITransferJudge
from connpool.transfer.records import Offer, SmallFile

__all__ = ["Judging", "contentOf"]


def contentOf(data: bytes | memoryview) -> int:
    """
    Make a file without a name that nobody can write to.

    @return: a descriptor at its beginning.
    """
    with contextlib.suppress(AttributeError, OSError):  # a system without them, or against them
        return _sealed(data)
    with tempfile.NamedTemporaryFile() as file:
        _writeAll(file.fileno(), data)
        return os.open(file.name, os.O_RDONLY | os.O_CLOEXEC)


def _sealed(data: bytes | memoryview) -> int:
    fd = os.memfd_create("content", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _writeAll(fd, data)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _writeAll(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class Judging:
    """
    The judges of a reception.

    @ivar now: files that are being judged.
    @ivar refused: files that were refused for good.
    @ivar held: times that a file was held.
    """

    _log = Logger()

    def __init__(self, judges: Sequence[ITransferJudge]) -> None:
        self._judges = judges
        self.now = self.refused = self.held = 0

    @property
    def counts(self) -> dict[str, int]:
        """
        The counts, as L{TransferStats} has them.
        """
        return {"judging": self.now, "judgeRefused": self.refused, "judgeHeld": self.held}

    async def judge(self, offer: Offer, peer: str, content: Callable[[], Any]) -> None:
        """
        Ask all judges.

        @param content: gives a descriptor that is open for reading, or a Deferred of one.
        @raise TransferError: why it is not published.
        """
        self.now += 1
        try:
            for judge in self._judges:
                await maybeDeferred(judge.beforePublish, offer, peer, content)
        except HookRefused:
            self.refused += 1
            raise
        except Held:
            self.held += 1
            raise
        except Exception:
            self.held += 1
            self._log.failure("a file could not be judged, and is held")
            raise Held("the file could not be judged; try again later") from None
        finally:
            self.now -= 1

    async def judgePartial(self, incoming: Any) -> None:
        """
        Judge a file that came in parts.

        @param incoming: the reception's hand on it (L{connpool.transfer.receive.reception}).
        @raise TransferError: why it is not published.
        """
        partial = incoming.partial
        incoming.judged = True
        try:
            if incoming.offer.resumeKey is not None:
                # verified and not published, whatever becomes of us
                await partial.checkpoint()
            size = incoming.done if incoming.offer.size is None else incoming.offer.size
            offer = attrs.evolve(incoming.offer, size=size)
            await self.judge(offer, incoming.peer, partial.openContent)
        finally:
            incoming.judged = False

    def judgeSmall(self, files: Sequence[SmallFile], peer: str) -> Deferred[list[Failure | None]]:
        """
        Judge files that came whole.

        @return: fires with the reason for each that is not published.
        """

        async def one(file: SmallFile) -> None:
            await self.judge(file.offer, peer, lambda: contentOf(file.data))

        judged = DeferredList(
            [Deferred.fromCoroutine(one(each)) for each in files], consumeErrors=True
        )
        return judged.addCallback(lambda pairs: [result for _, result in pairs])
