"""
The body of one request on its way to whoever asked for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from connpool.errors import StoreError, TransferError
from connpool.transfer.web.body import Chunked, Sized
from connpool.transfer.web.head import FieldValues
from connpool.transfer.wire.link import Deadline

__all__ = ["Flow", "Sink"]

#: Bytes that may wait for the disk or a digest before no more is read.
MAX_OUTSTANDING_BYTES = 4 << 20

#: Takes a run of content; returns L{None} when it is done with it, or a Deferred that fires
#: when it is.
Sink = Callable[[memoryview], "Deferred[None] | None"]


@attrs.define(eq=False)
class Flow:
    """
    The body of one request, held to the deadline of seconds without a byte and bytes/s;
    C{changed} is told that L{wants} may have changed.
    """

    _clock: Any
    _length: int | None
    _limits: Callable[[], tuple[float, float]]
    _changed: Callable[[], None]
    _body: Sized | Chunked = attrs.field(init=False)
    #: there is none for a body that is here already
    _deadline: Deadline | None = attrs.field(default=None, init=False)
    _sink: Sink | None = attrs.field(default=None, init=False)
    _outstanding: int = attrs.field(default=0, init=False)
    _done: Deferred[FieldValues] | None = attrs.field(default=None, init=False)
    _why: TransferError | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._body = Chunked() if self._length is None else Sized(self._length)

    @property
    def over(self) -> bool:
        """
        Tell whether nothing of the body is left in the stream.
        """
        return self._body.over

    @property
    def flows(self) -> bool:
        """
        Tell whether more of it is going to be read.
        """
        return self._sink is not None and self._why is None and not self._body.over

    @property
    def wants(self) -> bool:
        """
        Tell whether more of it may be read now.
        """
        return self.flows and self._outstanding <= MAX_OUTSTANDING_BYTES

    @property
    def left(self) -> int:
        """
        Bytes of a body of known length that have not come; 0 for another one.
        """
        return self._body.left if isinstance(self._body, Sized) else 0

    def begin(self, sink: Sink) -> Deferred[FieldValues]:
        """
        Let the body flow, once L{steer} is called; as
        L{connpool.transfer.web.request.Request} says of C{receive}.
        """
        assert self._sink is None, "a body is taken once"
        if self._why is not None:
            return fail(self._why)
        self._sink, self._done = sink, Deferred()
        return self._done

    def feed(self, data: Any, free: Callable[[], None] = lambda: None) -> Any:
        """
        Take bytes of the stream, and call C{free} when they are not needed any more.  Return
        those behind the body; after keeping them, L{steer} is to be called.
        """
        assert self._sink is not None
        if self._deadline is not None:
            self._deadline.arrived(len(data))
        rest: bytes | bytearray = b""
        taking = None
        try:
            run, rest = self._body.feed(data)
            if run and self._why is None:
                taking = self._sink(run)
        except TransferError as e:
            self.fail(e)
        if taking is None:
            free()
            return rest
        count = len(run)
        self._outstanding += count

        def taken(result: Any) -> None:
            self._outstanding -= count
            free()
            if isinstance(result, Failure):
                why: Any = result.value
                self.fail(why)
            else:
                self.steer()

        taking.addBoth(taken)
        return rest

    def steer(self) -> None:
        """
        Find out whether to read on, and tell if all is done.
        """
        # time in which we do not read is not the client's
        if self.wants:
            if self._deadline is None:
                self._deadline = Deadline(self._clock, *self._limits(), self.fail)
            self._deadline.start()
        elif self._deadline is not None:
            self._deadline.stop()
        done = self._done
        if done is not None and self._why is None and self.over and not self._outstanding:
            self._done = None
            done.callback(self._body.trailers)
        self._changed()

    def fail(self, why: BaseException) -> None:
        """
        Break it off: nothing more of it is given to the sink.
        """
        if self._why is not None or (self._sink is not None and self._done is None):
            return
        if not isinstance(why, TransferError):
            why = StoreError(f"the store failed: {type(why).__name__}")
        self._why = why
        done, self._done = self._done, None
        self.steer()
        if done is not None:
            done.errback(why)
