"""
The pool's settings: one frozen value, checked as a whole.

Because L{ConnectionPool.reconfigure} evolves and checks the whole value before
anything changes, the order in which options are set never matters
(golang/go#45993).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import attrs
from twisted.logger import Logger

__all__ = ["Settings", "exponentialBackoff"]

_log = Logger()

#: No back-off is shorter, whatever its policy says.
LEAST_PAUSE_SECONDS = 0.001


def exponentialBackoff(
    initialDelay: float = 0.1,
    maxDelay: float = 30.0,
    factor: float = 1.6,
    jitter: Callable[[], float] = random.random,
) -> Callable[[int], float]:
    """
    A policy for L{Settings.backoff}: exponential, with half of the delay drawn
    at random so that pools which failed together do not return together.

    @param jitter: returns a number from 0 to 1.
    @return: the number of failed steps so far (1, 2, …) to seconds.
    """

    def delay(failures: int) -> float:
        # the exponent is bounded: 1.6 ** 1500 does not fit a float
        full = min(maxDelay, initialDelay * factor ** min(failures - 1, 200))
        return full * (0.5 + jitter() / 2)

    return delay


_default = exponentialBackoff()


def _refuse(name: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"{name}={value!r} is out of range: it must be {allowed}")


def _count(low: int, *, optional: bool = False) -> Any:
    allowed = f"a whole number of at least {low}" + (" or None" if optional else "")

    def check(_: Any, attribute: Any, value: Any) -> None:
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise _refuse(attribute.name, value, allowed)

    return check


def _seconds(*, optional: bool = False, zero: bool = False) -> Any:
    allowed = f"seconds, {'0 or more' if zero else 'more than 0'} and finite" + (
        ", or None" if optional else ""
    )

    def check(_: Any, attribute: Any, value: Any) -> None:
        if value is None and optional:
            return
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value < 0
            or (value == 0 and not zero)
        ):
            raise _refuse(attribute.name, value, allowed)

    return check


def _oneOf(*choices: Any) -> Any:
    allowed = " or ".join(repr(choice) for choice in choices)

    def check(_: Any, attribute: Any, value: Any) -> None:
        if value not in choices:
            raise _refuse(attribute.name, value, allowed)

    return check


def _callable(_: Any, attribute: Any, value: Any) -> None:
    if not callable(value):
        raise _refuse(attribute.name, value, "callable: failed steps to seconds")


@attrs.frozen(kw_only=True)
class Settings:
    """
    Every limit of one pool.  Times are seconds.

    @ivar maxSize: connections of any state together: leased, idle, connecting,
        being checked, closing.
    @ivar minIdle: idle connections kept ready once the pool is started.
    @ivar maxConnecting: dials at once.
    @ivar maxWaiting: acquires that may wait; 0: none ever waits; L{None}: any number.
    @ivar acquireTimeout: how long an acquire waits; L{None}: for ever.
    @ivar connectTimeout: for connecting, TLS handshake and C{prepare} together.
    @ivar idleTimeout: an idle connection this old is closed; L{None}: never.
    @ivar maxLifetime: age at which a connection is replaced; L{None}: never.
    @ivar lifetimeJitter: each connection's lifetime is shortened at its birth
        by a random share of up to this much, from 0 to 1.
    @ivar maxUses: leases after which a connection is closed; L{None}: any number.
    @ivar validateAfterIdle: a connection idle for this long is asked
        C{IPoolable.validate} before it is handed out; L{None}: never.
    @ivar keepaliveTime: an idle connection is asked C{IPoolable.validate} in the
        background about this often, a few at a time; L{None}: never.
    @ivar resetTimeout: for C{IPoolable.reset} and C{IPoolable.validate}, each.
    @ivar closeTimeout: from asking a connection to close until it is aborted.
    @ivar order: which idle connection is handed out: C{"lifo"}, the most
        recently used (the rest can expire), or C{"fifo"} (all share the load).
    @ivar queue: C{"fifo"}, or C{"codel"}, which sheds waiters under overload.
    @ivar queueTarget: C{"codel"}: the wait that is acceptable for long.
    @ivar queueInterval: C{"codel"}: how long waits may be above the target.
    @ivar onDown: C{"fail"}: acquires fail while the destination is down;
        C{"wait"}: they wait for it until their timeout.
    @ivar backoff: number of failed steps (1, 2, …) to the seconds before the
        next; L{twisted.application.internet.backoffPolicy} fits.
    @ivar tcpKeepAlive: let the kernel probe silent connections.
    @ivar leakThreshold: a lease held longer is logged; L{None}: none is.
    @ivar leaseTimeout: a lease held longer is ended by the pool, its connection
        aborted; L{None}: none is.
    @ivar failBack: when an earlier destination is there again, idle connections to
        later ones are replaced within this; L{None}: they stay.
    @ivar debug: keep whole stacks of acquires and releases, report acquires
        that wait inside a task that already holds a lease.
    """

    maxSize: int = attrs.field(default=10, validator=_count(1))
    minIdle: int = attrs.field(default=0, validator=_count(0))
    maxConnecting: int = attrs.field(default=2, validator=_count(1))
    maxWaiting: int | None = attrs.field(default=None, validator=_count(0, optional=True))
    acquireTimeout: float | None = attrs.field(
        default=30.0, validator=_seconds(optional=True, zero=True)
    )
    connectTimeout: float = attrs.field(default=15.0, validator=_seconds())
    idleTimeout: float | None = attrs.field(default=60.0, validator=_seconds(optional=True))
    maxLifetime: float | None = attrs.field(default=None, validator=_seconds(optional=True))
    lifetimeJitter: float = attrs.field(default=0.1, validator=_seconds(zero=True))
    maxUses: int | None = attrs.field(default=None, validator=_count(1, optional=True))
    validateAfterIdle: float | None = attrs.field(
        default=None, validator=_seconds(optional=True, zero=True)
    )
    keepaliveTime: float | None = attrs.field(default=None, validator=_seconds(optional=True))
    resetTimeout: float = attrs.field(default=5.0, validator=_seconds())
    closeTimeout: float = attrs.field(default=5.0, validator=_seconds())
    order: str = attrs.field(default="lifo", validator=_oneOf("lifo", "fifo"))
    queue: str = attrs.field(default="fifo", validator=_oneOf("fifo", "codel"))
    queueTarget: float = attrs.field(default=0.05, validator=_seconds())
    queueInterval: float = attrs.field(default=0.5, validator=_seconds())
    onDown: str = attrs.field(default="fail", validator=_oneOf("fail", "wait"))
    backoff: Callable[[int], float] = attrs.field(factory=exponentialBackoff, validator=_callable)
    tcpKeepAlive: bool = attrs.field(default=True, validator=_oneOf(True, False))
    leakThreshold: float | None = attrs.field(default=None, validator=_seconds(optional=True))
    leaseTimeout: float | None = attrs.field(default=None, validator=_seconds(optional=True))
    failBack: float | None = attrs.field(default=30.0, validator=_seconds(optional=True))
    debug: bool = attrs.field(default=False, validator=_oneOf(True, False))

    def pause(self, failures: int) -> float:
        """
        @return: C{backoff(failures)}, but a whole turn of the reactor at least; or
            the default's where that fails: a pool must outlive a mistake in it.
        """
        try:
            seconds = self.backoff(failures)
            if not (seconds >= 0 and math.isfinite(seconds)):
                raise ValueError(f"{seconds!r} are no seconds to wait")
        except Exception:
            _log.failure("backoff({failures}) failed; the default is used", failures=failures)
            return _default(failures)
        return max(LEAST_PAUSE_SECONDS, seconds)

    def __attrs_post_init__(self) -> None:
        if self.minIdle > self.maxSize:
            raise _refuse("minIdle", self.minIdle, f"from 0 to maxSize={self.maxSize}")
        if self.lifetimeJitter > 1:
            raise _refuse("lifetimeJitter", self.lifetimeJitter, "from 0 to 1")
