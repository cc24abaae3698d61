import pkgutil
from collections import Counter
from importlib import import_module
from typing import ClassVar, Optional

import attrs
import pytest

import connpool
from connpool.observe.fields import describeFields
from connpool.pool.stats import Histogram, PoolStats
from connpool.services.access import ListenerStats
from connpool.transfer.receive.policy import TransferStats


def metrics(kind, snapshotClass):
    return {
        field.attribute: (field.metric, field.type) for field in describeFields(kind, snapshotClass)
    }


def test_namesAndTypesFollowFromFields():
    assert metrics("listener", ListenerStats) == {
        "connections": ("connpool_listener_connections", "gauge"),
        "accepted": ("connpool_listener_accepted_total", "counter"),
        "refusedAddress": ("connpool_listener_refused_address_total", "counter"),
        "refusedLimit": ("connpool_listener_refused_limit_total", "counter"),
        "healthChecks": ("connpool_listener_health_checks_total", "counter"),
    }
    found = metrics("transfer", TransferStats)
    assert found["receivedBytes"] == ("connpool_transfer_received_bytes_total", "counter")
    assert found["active"] == ("connpool_transfer_active", "gauge")
    found = metrics("pool", PoolStats)
    assert found["state"] == ("connpool_pool_state", "gauge")
    assert found["closed"] == ("connpool_pool_closed_total", "counter")
    assert found["waitMost"] == ("connpool_pool_wait_most_seconds", "gauge")
    assert found["wait"] == ("connpool_pool_wait_seconds", "histogram")
    assert found["leasesLostToGC"] == ("connpool_pool_leases_lost_to_gc_total", "counter")


@attrs.frozen
class Made:
    """
    Not of ours.

    @ivar up: L{True} while
        it works; see C{up}.
    @ivar errors: by reason.
    """

    GAUGES: ClassVar[frozenset[str]] = frozenset({"idleSeconds"})

    up: bool
    errors: Counter[str]
    idleSeconds: float | None
    busySeconds: float
    waitSeconds: Optional[float]  # noqa: UP045 - as others write it
    dial: Histogram
    peer: object
    anything = 3


def test_thirdPartySnapshots():
    fields = {field.attribute: field for field in describeFields("My-Thing", Made)}
    assert set(fields) == {"up", "errors", "idleSeconds", "busySeconds", "waitSeconds", "dial"}
    assert fields["up"].help == "True while it works; see up"
    assert fields["up"].type == "gauge"
    assert fields["errors"].label == "reason"
    assert fields["errors"].metric == "connpool_my_thing_errors_total"
    assert fields["idleSeconds"].metric == "connpool_my_thing_idle_seconds"
    assert fields["busySeconds"].metric == "connpool_my_thing_busy_seconds_total"
    assert fields["dial"].metric == "connpool_my_thing_dial_seconds"
    assert fields["busySeconds"].help == "busy seconds"


def test_valuesThatAreNotWhatTheirAnnotationSays():
    made = Made("yes", {"a": 1, "b": "2", 3: 4}, None, 0, 1.5, object(), None)
    values = {field.attribute: field.read(made) for field in describeFields("thing", Made)}
    assert values == {
        "up": None,
        "errors": {"a": 1, "3": 4},
        "idleSeconds": None,
        "busySeconds": 0,
        "waitSeconds": 1.5,
        "dial": None,
    }


def snapshotClasses():
    """
    Every class of ours that a C{stats()} returns.
    """
    found = set()
    for module in pkgutil.walk_packages(connpool.__path__, "connpool."):
        if module.name.endswith("__main__") or ".testing" in module.name:
            continue
        for value in vars(import_module(module.name)).values():
            isOurs = isinstance(value, type) and attrs.has(value)
            if isOurs and value.__name__.endswith(("Stats", "StateCounts")):
                found.add(value)
    return sorted(found, key=lambda each: each.__name__)


@pytest.mark.parametrize("snapshotClass", snapshotClasses(), ids=lambda each: each.__name__)
def test_everySnapshotClassKeepsTheContract(snapshotClass):
    names = {field.name for field in attrs.fields(snapshotClass)}
    assert names >= snapshotClass.GAUGES, "GAUGES names a field that is none"
    fields = describeFields("kind", snapshotClass)
    assert {field.attribute for field in fields} == names, "an annotation that is no number"
    for field in fields:
        assert field.help != field.attribute.lower(), f"{field.attribute} has no @ivar line"
        assert "\n" not in field.help
        assert "{" not in field.help
