"""
One connection that speaks C{cpt/1}: bytes and back-pressure, no meaning.

Theory of operation
===================
A L{Link} cuts what arrives into frames for its session, and stops reading while
the session is busy (L{Link.hold}), while more than L{MAX_OUTSTANDING_BYTES} bytes of
a data part are being written or hashed, and while the peer does not read what we
answer.

For the rest of a long C{DATA} the transport is paused and its socket is read
directly (L{connpool.transfer.wire.borrowed}); the session gets views of the buffers
and says when it is done with each.  The frames behind it are read there as well, until one
comes that is not of a large file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IPushProducer,
)
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from connpool.addresses.tls import connectionLoss
from connpool.errors import TooSlow, TransferError, TransferTimeout
from connpool.interfaces import IDrainableProtocol
from connpool.transfer.wire.borrowed import BorrowedReader, lends
from connpool.transfer.wire.frames import PREAMBLE, Frame, FrameReader, Type

__all__ = ["MAX_OUTSTANDING_BYTES", "TURN_SECONDS", "Deadline", "Link"]

#: Bytes of C{DATA} that may wait for the disk or the digest.
MAX_OUTSTANDING_BYTES = 4 << 20
#: Bytes/s at which a peer reads our answers, at least.
_LEAST_READ_BYTES_PER_SECOND = 1024
#: Seconds of work for one connection before others have their turn.
TURN_SECONDS = 0.05
#: C{DATA} with less left is read the ordinary way.
_WORTH_BORROWING_BYTES = 128 * 1024
#: The transport's reads: large for many small files, small before a long C{DATA}.
_LARGE_READ_BYTES, _SMALL_READ_BYTES = 1 << 20, 8 * 1024
#: Frames behind which a long C{DATA} is likely.
_LARGE_FILE = {Type.DATA, Type.PACKED, Type.HOLE, Type.DIGESTS}
_SMALL_FILES = {Type.PUT, Type.PUTS}
#: The transport's reads until the peer is known: as much may be kept of a stranger.
_GREETING_READ_BYTES = 16 * 1024


class Deadline:
    """
    Watches that bytes keep coming.

    A peer is late when nothing came for C{idleTimeout} seconds, or when less
    than C{minimumRate} bytes/s came on average over such a span (a slow-loris
    sends one byte just in time).  Time in which we did not read does not count.

    One lazily armed timer; what arrives costs two additions, no timer call.

    @param clock: L{twisted.internet.interfaces.IReactorTime}.
    @param idleTimeout: seconds, above 0.
    @param minimumRate: bytes/s; 0 for none.
    @param late: called once with the error that ends the transfer.
    """

    def __init__(
        self,
        clock: Any,
        idleTimeout: float,
        minimumRate: float,
        late: Callable[[TransferError], Any],
    ) -> None:
        self._clock = clock
        self._idleTimeout = idleTimeout
        self._minimumRate = minimumRate
        self._late = late
        self._call: Any = None
        self._bytes = 0
        self._last = self._began = self._stopped = clock.seconds()

    def start(self) -> None:
        """
        Begin, or go on after L{stop}.
        """
        if self._call is None:
            now = self._clock.seconds()
            # time that passed before counts: else a peer that stops us now and then is never late
            self._last = min(self._last + now - self._stopped, now)
            self._began += now - self._stopped
            self._wait(now)

    def stop(self) -> None:
        """
        Expect nothing for now: we do not read, or it is over.
        """
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
            self._stopped = self._clock.seconds()

    def arrived(self, count: int) -> None:
        """
        Note that C{count} bytes came.
        """
        self._bytes += count
        self._last = self._clock.seconds()

    def _check(self) -> None:
        self._call = None
        now = self._clock.seconds()
        if now - self._last >= self._idleTimeout:
            self._late(TransferTimeout(f"nothing came for {self._idleTimeout:g} s"))
            return
        span = now - self._began
        if span >= self._idleTimeout:
            if self._bytes < self._minimumRate * span:
                self._late(
                    TooSlow(
                        f"{self._bytes / span:.0f} bytes/s over {span:.0f} s; "
                        f"at least {self._minimumRate:g} are asked for"
                    )
                )
                return
            self._began, self._bytes = now, 0
        self._wait(now)

    def _wait(self, now: float) -> None:
        due = min(self._last, self._began) + self._idleTimeout
        self._call = self._clock.callLater(max(due - now, 0.001), self._check)


@implementer(IHalfCloseableProtocol, IPushProducer, IDrainableProtocol)
class Link(Protocol):
    """
    One connection.

    @param reactor: times, and lends descriptors if it can.
    @param session: told about frames; see L{ReceiverSession} and
        L{SenderSession}.
    @param idleTimeout: seconds of silence that end the connection.
    @param minimumRate: bytes/s the peer must keep up inside a frame.
    @ivar holds: reasons not to read.
    @ivar full: whether the peer does not read what we answer.
    @ivar resumed: called when it has read after that.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, session: Any, idleTimeout: float = 60.0, minimumRate: float = 0.0
    ) -> None:
        self._reactor = reactor
        self._session = self.session = session
        self.reader = FrameReader()
        self.holds = 0
        self.ended: BaseException | None = None
        self._greeted = 0
        self._queue: deque[bytes] = deque()
        self._events: Iterator[Any] | None = None
        self._working = False
        self._paused = False
        self._over = False
        self._outstanding = 0
        self.full = False
        self.resumed: Callable[[], Any] = lambda: None
        self._fullSince = 0.0
        self._unread: Any = None
        self._unsent = 0
        self._borrowed: BorrowedReader | None = None
        self._canBorrow = True
        self._large = False
        self.idleTimeout = idleTimeout
        self._heard = 0.0
        self._quiet: Any = None
        self._deadline = Deadline(reactor, idleTimeout, minimumRate, self.late)
        self._watched = False

    # -- the transport's side

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.bufferSize = _GREETING_READ_BYTES
        if hasattr(transport, "setTcpNoDelay"):
            transport.setTcpNoDelay(True)
        self._heard = self._reactor.seconds()
        self._quiet = self._reactor.callLater(self.idleTimeout, self._checkQuiet)
        self._session.linkMade(self)

    def dataReceived(self, data: bytes) -> None:
        if self.ended is not None:
            return  # read only so that what we wrote last is not lost in a reset
        self._heard = self._reactor.seconds()
        self._deadline.arrived(len(data))
        self._queue.append(data)
        if not self._working:
            self._work()

    def readConnectionLost(self) -> None:
        self._over = True
        if not self._working:
            self._work()

    def writeConnectionLost(self) -> None:
        self.failed(ConnectionDone())

    def connectionLost(self, reason: Failure | None = None) -> None:
        why: BaseException | None = reason.value if reason is not None else None
        self._end(connectionLoss(why or ConnectionDone()))

    # -- being told not to write so much: the peer does not read

    def pauseProducing(self) -> None:
        if not self.full:
            self.full = True
            self._fullSince = self._reactor.seconds()
            self._unread = self._reactor.callLater(self.idleTimeout, self._checkUnread)
            self.hold()

    def resumeProducing(self) -> None:
        self._unsent = 0
        if self.full:
            self.full = False
            if self._unread.active():
                self._unread.cancel()
            self.release()
            self.resumed()

    def stopProducing(self) -> None:
        pass

    # -- the session's side

    def send(self, *parts: bytes) -> None:
        """
        Write, unless it is over.
        """
        if self.ended is None:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            self._unsent += len(data)
            transport: Any = self.transport
            transport.write(data)

    @property
    def greeted(self) -> bool:
        """
        Tell whether the peer's preamble came.
        """
        return self._greeted == len(PREAMBLE)

    def admit(self) -> None:
        """
        Read as much as there is: the peer is known.
        """
        transport: Any = self.transport
        transport.bufferSize = _LARGE_READ_BYTES

    @property
    def kept(self) -> int:
        """
        Bytes that came and are in memory: queued, and of an incomplete frame.
        """
        return self.reader.kept + sum(map(len, self._queue))

    @property
    def wanted(self) -> int:
        """
        Bytes of the data part that have not come.
        """
        return self.reader.left

    def hold(self) -> None:
        """
        Do not read until L{release}, called as often.
        """
        self.holds += 1
        if self._watched:
            # time in which we do not read is not the peer's
            self._watched = False
            self._deadline.stop()
        self.steer()

    def release(self) -> None:
        """
        Read again: the inverse of L{hold}.
        """
        self.holds -= 1
        if not self.holds and not self._working and self.ended is None:
            self._work()

    def waitFor(self, d: Deferred[Any]) -> None:
        """
        Do not read until C{d}, which does not fail, has fired.
        """
        if d.called and not d.paused:
            return
        self.hold()
        d.addCallback(lambda _: self.release())

    def close(self) -> None:
        """
        End the connection after what was written.
        """
        transport: Any = self.transport
        if self._borrowed is not None and not self.reader.left:
            self.giveBack()  # TLS reads the peer's end, too
        self._end(ConnectionDone())
        transport.unregisterProducer()
        transport.loseConnection()
        # a peer that does not read keeps nothing open
        self._quiet = self._reactor.callLater(10.0, transport.abortConnection)

    def drain(self) -> None:
        self._session.drain()

    def abort(self, why: BaseException) -> None:
        """
        End the connection at once.
        """
        transport: Any = self.transport
        self._end(why)
        transport.abortConnection()

    def failed(self, why: BaseException | None) -> None:
        """
        End the connection, which broke.
        """
        self.abort(connectionLoss(why or ConnectionLost()))

    def late(self, why: TransferError) -> None:
        """
        Tell the session that a deadline passed.
        """
        self._watched = False
        if self.ended is None:
            self._session.late(why)

    def keepDeadline(self, idleTimeout: float, minimumRate: float) -> None:
        """
        Hold the peer, which is known now, to this deadline.  Its PINGs may come as
        rarely as it was told before.
        """
        self.idleTimeout = max(self.idleTimeout, idleTimeout)
        self._deadline.stop()
        self._watched = False
        self._deadline = Deadline(self._reactor, idleTimeout, minimumRate, self.late)

    # -- inside

    def _work(self) -> None:
        transport: Any = self.transport
        self._working = True
        until = self._reactor.seconds() + TURN_SECONDS
        try:
            while not self.holds and self.ended is None:
                if self._reactor.seconds() > until:
                    # what costs us much was cheap to send
                    self.hold()
                    self._reactor.callLater(0, self.release)
                    break
                if self._events is None:
                    if not self._queue:
                        if self._over:
                            self._over = False
                            self._finish()
                        break
                    self._events = self._feed(self._queue.popleft())
                event = next(self._events, None)
                if event is None:
                    self._events = None
                elif isinstance(event, Frame):
                    if event.type in _SMALL_FILES:
                        transport.bufferSize = _LARGE_READ_BYTES
                    self._large = event.type in _LARGE_FILE
                    self._session.frameReceived(event)
                else:
                    self._piece(event.data)
        except TransferError as e:
            self._session.broken(e)
        except Exception as e:
            self.log.failure("a session failed")
            self._session.broken(TransferError(f"internal error: {type(e).__name__}"))
        finally:
            self._working = False
        if self.ended is None:
            self._session.turn()
            self._watched = self._setDeadline()
            self.steer()

    def _finish(self) -> None:
        """
        Tell the session that the peer has said all it will.
        """
        if self.reader.inside or not self.greeted:
            self.failed(ConnectionDone())
        else:
            self._session.halfClosed()

    def _feed(self, data: bytes) -> Iterator[Any]:
        if not self.greeted:
            count = min(len(PREAMBLE) - self._greeted, len(data))
            if data[:count] != PREAMBLE[self._greeted : self._greeted + count]:
                self._session.foreign(PREAMBLE[: self._greeted] + data)
                return iter(())
            self._greeted += count
            data = data[count:]
            if self.greeted:
                self._session.greeted()
        return self.reader.feed(data)

    def _piece(self, view: memoryview, done: Callable[[], None] | None = None) -> None:
        d = self._session.partReceived(view)
        if d is None:
            if done is not None:
                done()
            return
        count = len(view)
        self._outstanding += count

        def finished(_: Any) -> None:
            before = self._outstanding
            self._outstanding -= count
            if done is not None:
                done()
            if before > MAX_OUTSTANDING_BYTES >= self._outstanding:
                self.release()

        if self._outstanding - count <= MAX_OUTSTANDING_BYTES < self._outstanding:
            self.hold()
        d.addBoth(finished)

    def borrowed(self, view: memoryview, done: Callable[[], None]) -> None:
        """
        Take C{view} of the data part, or of the frames behind it, which the borrowed socket read.
        """
        if not self.reader.left:
            data = bytes(view)
            done()
            self.dataReceived(data)
            if self.ended is None and not self._large:
                self.giveBack()
            return
        self._heard = self._reactor.seconds()
        self._deadline.arrived(len(view))
        self.reader.skip(len(view))
        self._working = True
        try:
            self._piece(view, done)
        except TransferError as e:
            self._session.broken(e)
        finally:
            self._working = False
        if self.ended is not None:
            return
        if not self.reader.left:
            self._session.turn()
            self._watched = self._setDeadline()
        self.steer()

    def borrowedEnd(self) -> None:
        """
        Note that the borrowed socket read the end.  That is for the transport to see, and
        is still to be read there; nothing else is.
        """
        self._canBorrow = False
        self.giveBack()

    def giveBack(self) -> None:
        """
        Let the transport read again.
        """
        borrowed, self._borrowed = self._borrowed, None
        if borrowed is not None:
            borrowed.close()
        if not self.reader.left:
            self._watched = self._setDeadline()
        self.steer()

    def steer(self) -> None:
        """
        Let exactly one of transport and borrowed socket read, or none.
        """
        if self.ended is not None:
            return
        transport: Any = self.transport
        idle = not self._queue and self._events is None
        if (
            self._borrowed is None
            and self.reader.left >= _WORTH_BORROWING_BYTES
            and idle
            and not self._working
            and self._canBorrow
            and lends(self._reactor, transport)
        ):
            self._pause(True)
            self._borrowed = BorrowedReader(self._reactor, transport, self)
            # what follows the data is most likely the next header
            transport.bufferSize = _SMALL_READ_BYTES
        if self._borrowed is not None:
            self._borrowed.steer(not self.holds)
        else:
            self._pause(bool(self.holds))

    def _pause(self, pause: bool) -> None:
        if pause != self._paused:
            self._paused = pause
            transport: Any = self.transport
            (transport.pauseProducing if pause else transport.resumeProducing)()

    def _setDeadline(self) -> bool:
        inside = self.reader.inside and not self.holds
        if inside and not self._watched:
            self._deadline.start()
        elif not inside and self._watched:
            self._deadline.stop()
        return inside

    def _checkQuiet(self) -> None:
        self._quiet = None
        left = self._heard + self.idleTimeout - self._reactor.seconds()
        if left <= 0 and not self.holds:
            self.late(TransferTimeout(f"nothing came for {self.idleTimeout:g} s"))
        if self.ended is None:
            # held back by ourselves: look again after a whole span
            wait = left if left > 0 else self.idleTimeout
            self._quiet = self._reactor.callLater(wait, self._checkQuiet)

    def _checkUnread(self) -> None:
        """
        End a connection whose peer never reads.
        """
        due = self._fullSince + self.idleTimeout + self._unsent / _LEAST_READ_BYTES_PER_SECOND
        wait = due - self._reactor.seconds()
        if wait > 0:
            self._unread = self._reactor.callLater(wait, self._checkUnread)
        else:
            self.abort(TransferTimeout("the peer does not read what is answered"))

    def _end(self, why: BaseException) -> None:
        if self._quiet is not None:
            if self._quiet.active():
                self._quiet.cancel()
            self._quiet = None
        if self.ended is not None:
            return
        self.ended = why
        self._deadline.stop()
        if self._unread is not None and self._unread.active():
            self._unread.cancel()
        if self._borrowed is not None:
            self._borrowed.close()
            self._borrowed = None
        self._queue.clear()
        self._events = None
        self._session.linkLost(why)
