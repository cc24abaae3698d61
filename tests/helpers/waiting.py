"""
Bounded waits: nothing in the tests waits for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet import reactor, task
from twisted.internet.defer import Deferred

T = TypeVar("T")


def bounded(d: Deferred[T], seconds: float = 20.0) -> Deferred[T]:
    """
    C{d}, failing with C{TimeoutError} after C{seconds}.
    """
    return d.addTimeout(seconds, reactor)


def pause(seconds: float) -> Deferred[None]:
    """
    Let the real reactor run for C{seconds}.
    """
    return task.deferLater(reactor, seconds, lambda: None)


async def until(predicate: Callable[[], Any], seconds: float = 20.0) -> Any:
    """
    Turn the reactor until C{predicate()} is true.

    @return: what it returned.
    @raise AssertionError: if it is not true within C{seconds}.
    """
    end = reactor.seconds() + seconds
    while not (result := predicate()):
        assert reactor.seconds() < end, f"not within {seconds} s: {predicate}"
        await pause(0.005)
    return result


def successResultOf(d: Deferred[T]) -> T:
    """
    The result C{d} has now.
    """
    results: list[Any] = []
    d.addBoth(results.append)
    assert results, "no result yet"
    from twisted.python.failure import Failure

    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]  # type: ignore[no-any-return]  # the result of a Deferred is Any


def failureResultOf(d: Deferred[Any], *kinds: type[BaseException]) -> BaseException:
    """
    The exception C{d} has failed with; it is of one of C{kinds} if given.
    """
    from twisted.python.failure import Failure

    results: list[Any] = []
    d.addBoth(results.append)
    assert results, "no result yet"
    assert isinstance(results[0], Failure), f"succeeded with {results[0]!r}"
    assert not kinds or results[0].check(*kinds), f"failed with {results[0].value!r}"
    return results[0].value


def assertNoResult(d: Deferred[Any]) -> None:
    """
    C{d} has not fired; it still works afterwards.
    """
    results: list[Any] = []

    def keep(result: Any) -> Any:
        results.append(result)
        return result

    d.addBoth(keep)
    assert not results, f"already fired: {results[0]!r}"
