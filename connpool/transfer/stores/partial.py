"""
A file on its way into a local store.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.errors import NoSpace, StoreError, TooLarge, TransferError
from connpool.interfaces import IPartial
from connpool.transfer.records import Offer, Receipt
from connpool.transfer.stores.pace import Pace
from connpool.transfer.stores.publish import Source
from connpool.transfer.stores.ranges import Ranges
from connpool.transfer.stores.syscalls import Syscalls, asTransferError

if TYPE_CHECKING:
    from connpool.transfer.stores.local import LocalStore

__all__ = ["LocalPartial"]


@implementer(IPartial)
class LocalPartial:
    """
    @ivar _gate: why nothing may be written, or L{None}: closed at commit,
        suspend, abort, take-over and the first error that is not C{ENOSPC}.
    @ivar _flying: ranges whose writes are in threads.
    """

    def __init__(
        self,
        store: LocalStore,
        syscalls: Syscalls,
        pace: Pace,
        offer: Offer,
        fd: int,
        directory: int,
        name: str,
    ) -> None:
        self._store = store
        self._sys = syscalls
        self._pace = pace
        self._offer = offer
        self._fd = fd
        self._directory = directory
        self._name = name
        self.held = Ranges()
        self.durable = Ranges()
        self.digests: dict[int, bytes] = {}
        self._flying = Ranges()
        self._gate: TransferError | None = None
        self._waiting: list[Deferred[None]] = []
        self._gone = False

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> Deferred[None] | None:
        if self._gate is not None:
            raise self._gate
        end = offset + len(data)
        size = self._offer.size
        if size is not None and end > size:
            raise TooLarge(f'"{self._offer.name}": more bytes arrive than the {size} announced')
        if self.held.overlaps(offset, end) or self._flying.overlaps(offset, end):
            raise StoreError(f'"{self._offer.name}": bytes {offset} to {end} are held already')
        if self._pace.inline:
            try:
                self._writeNow(offset, data)
            except OSError as error:
                raise self._failed(error) from None
            self.held.add(offset, end)
            return None
        self._flying.add(offset, end)
        d = self._store.inThread(self._writeNow, offset, data)
        return d.addBoth(self._written, offset, end)

    def _writeNow(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        began = time.perf_counter()
        self._sys.writeAll(self._fd, data, offset)
        self._pace.took(time.perf_counter() - began)

    def _written(self, result: Any, offset: int, end: int) -> Any:
        self._flying.remove(offset, end)
        if isinstance(result, Failure):
            error = result.value
            result = Failure(self._failed(error)) if isinstance(error, OSError) else result
        else:
            self.held.add(offset, end)
        if not self._flying:
            waiting, self._waiting = self._waiting, []
            for d in waiting:
                d.callback(None)
        return result

    def _failed(self, error: OSError) -> TransferError:
        translated = asTransferError(error, f'writing "{self._offer.name}"')
        if not isinstance(translated, NoSpace):
            self._gate = translated
        return translated

    def record(self, block: int, digest: bytes) -> None:
        self.digests[block] = digest

    def discard(self, start: int, end: int) -> None:
        self.held.remove(start, end)
        size = self._offer.blockSize
        for block in range(start // size, -(-end // size)):
            self.digests.pop(block, None)

    def settled(self) -> Deferred[Sequence[tuple[int, int]]]:
        return succeed([])

    def checkpoint(self) -> Deferred[None]:
        return succeed(None)

    def suspend(self) -> Deferred[None]:
        return self.abort()

    def commit(self, root: bytes | None) -> Deferred[Receipt]:
        if self._gate is not None:
            return fail(self._gate)
        self._gate = StoreError(f'"{self._offer.name}" is being published')
        d = self._quiet()
        return d.addCallback(lambda _: self._commit(root))

    def _commit(self, root: bytes | None) -> Deferred[Receipt]:
        size = self.held.end if self._offer.size is None else self._offer.size
        if not self.held.covers(0, size):
            return fail(StoreError(f'"{self._offer.name}" is not complete'))
        source = Source(self._fd, self._directory, self._name, size)
        if self._store.level(self._offer):
            d = self._store.inThread(self._store.finish, self._offer, source, root)
        else:
            d = maybeDeferred(self._store.finish, self._offer, source, root)
        return d.addCallbacks(self._published, self._notPublished)

    def _published(self, receipt: Receipt) -> Receipt:
        self._letGo()
        return receipt

    def _notPublished(self, failure: Failure) -> Failure:
        if failure.check(NoSpace):
            self._gate = None
        return failure

    def abort(self) -> Deferred[None]:
        if self._gone:
            return succeed(None)
        self._gate = StoreError(f'"{self._offer.name}" was aborted')
        return self._quiet().addCallback(self._remove)

    def _remove(self, ignored: object = None) -> None:
        if self._gone:
            return
        with contextlib.suppress(OSError):  # the reaper finds it
            self._sys.remove(self._name, self._directory)
        self._letGo()

    def _letGo(self) -> None:
        if not self._gone:
            self._gone = True
            self._sys.close(self._fd)
            self._store.left(self)

    def _quiet(self) -> Deferred[None]:
        """
        @return: fires when no write is in a thread.
        """
        if not self._flying:
            return succeed(None)
        d: Deferred[None] = Deferred()
        self._waiting.append(d)
        return d
