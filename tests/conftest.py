"""
Fixtures for every test.

C{noLeaks} is always on: pytest-twisted lets logged failures, unhandled
Deferreds and left-over delayed calls pass (pytest-twisted #4), so a test fails
here for each of them unless it said C{expectFailure(SomeError)}.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, globalLogPublisher
from zope.interface import implementer

from connpool.transfer.syscalls import VOLATILE, filesystemType
from tests.helpers.waiting import until

# how long an example takes, or is made, says something about the machine only
hypothesis.settings.register_profile(
    "connpool", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("connpool")


@implementer(ILogObserver)
class _Errors:
    def __init__(self) -> None:
        self.expected: list[type[BaseException]] = []
        self.failures: list[Any] = []

    def __call__(self, event: dict[str, Any]) -> None:
        failure = event.get("log_failure")
        if failure is not None:
            if not any(failure.check(kind) for kind in self.expected):
                self.failures.append(failure)
        elif event.get("isError"):
            self.failures.append(event)


def _delayedCalls() -> set[Any]:
    from twisted.internet import reactor

    return set(reactor.getDelayedCalls())


def leftCalls(before: set[Any]) -> list[Any]:
    """
    The delayed calls that are no more ended by what they are for.  One that is cancelled a
    moment later belonged to something that was ending when the test was over, as the other
    side of a connection does.
    """
    left = [call for call in _delayedCalls() - before if call.active()]
    if left:
        pytest_twisted.blockon(Deferred.fromCoroutine(_ended(left)))
    fired = [call for call in left if call.called]
    return fired + [call for call in _delayedCalls() - before if call.active()]


async def _ended(left: list[Any]) -> None:
    with contextlib.suppress(AssertionError):
        await until(lambda: not any(call.active() for call in left), 5)


@pytest.fixture(autouse=True)
def noLeaks() -> Iterator[_Errors]:
    """
    Fail the test for logged errors, unhandled Deferreds and delayed calls.
    """
    errors = _Errors()
    before = _delayedCalls()
    globalLogPublisher.addObserver(errors)
    try:
        yield errors
        gc.collect()
        left = leftCalls(before)
    finally:
        globalLogPublisher.removeObserver(errors)
    for call in left:
        if call.active():
            call.cancel()
    assert not errors.failures, f"logged errors: {errors.failures}"
    assert not left, f"left-over delayed calls: {left}"


@pytest.fixture
def expectFailure(noLeaks: _Errors) -> Callable[[type[BaseException]], None]:
    """
    Say that this kind of logged failure belongs to the test.
    """
    return noLeaks.expected.append


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """
    An empty directory for a receiver.
    """
    path = tmp_path / "root"
    path.mkdir()
    return path


def pytest_configure(config: pytest.Config) -> None:
    """
    Keep temporary files on a disk: what lies on tmpfs cannot be made durable,
    and a receiver says so.  And let programs be interrupted, also where we were
    started in the background, as C{nohup} does: they would inherit that it is ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.basetemp is None and filesystemOf(tempfile.gettempdir()) in VOLATILE:
        config.option.basetemp = str(config.rootpath / ".pytest_cache" / "tmp")


def filesystemOf(path: str) -> str:
    """
    The type of the file system that C{path} lies on.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        return filesystemType(fd)
    finally:
        os.close(fd)


def pytest_collection_finish() -> None:
    """
    Take what the imports made out of the collector's sight: C{noLeaks}
    collects after every test, and would look at all of it again each time.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """
    The same for the reports and caches of a file of tests that is done.
    """
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """
    C{@pytest.mark.peer("go")}: skip with a reason here, fail in CI.
    """
    for mark in item.iter_markers("peer"):
        for program in mark.args:
            engines = os.environ.get("CONNPOOL_ENGINES")
            if shutil.which(program) is None and shutil.which(program, path=engines) is None:
                reason = f"{program} is not installed"
                if os.environ.get("CI"):
                    pytest.fail(f"{reason}; .ci/run must install it", pytrace=False)
                pytest.skip(reason)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Leave C{slow} tests out unless C{-m slow} asks for them.
    """
    if "slow" in (config.option.markexpr or ""):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
