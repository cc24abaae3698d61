import subprocess

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from connpool.observe import StatsCollector, makeRegistry
from connpool.pool.stats import BOUNDS_SECONDS
from connpool.services.access import ListenerStats
from connpool.transfer.receive.policy import TransferStats
from tests.observe.sample import Source, busy, histogram, poolStats
from tests.observe.test_sources import within


def exposed(*roots):
    registry = CollectorRegistry()
    registry.register(StatsCollector(roots))
    return generate_latest(registry).decode()


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_samplesOfABusyProcess():
    root, _ = busy()
    root.startService()
    found = samples(exposed(root))
    assert found["connpool_transfer_published_total", "inbox"] == 805
    assert found["connpool_transfer_received_bytes_total", "inbox"] == 1 << 40
    assert found["connpool_datagram_refused_total", "echo", "rate"] == 1000
    assert found["connpool_pool_state", "open", "upstream db.example:5432"] == 1
    assert found["connpool_tcp_established", "inbox"] == 5
    assert found["connpool_ready",] == 1
    root.stopService()
    assert samples(exposed(root))["connpool_ready",] == 0


def test_histogramsAreCumulative():
    pool = Source("pool", "p", poolStats(dial=histogram(1, 0, 4)))
    found = samples(exposed(pool))
    assert found["connpool_pool_dial_seconds_bucket", "1e-06", "p"] == 1
    assert found["connpool_pool_dial_seconds_bucket", "2e-06", "p"] == 1
    assert found["connpool_pool_dial_seconds_bucket", "4e-06", "p"] == 5
    assert found["connpool_pool_dial_seconds_bucket", "+Inf", "p"] == 5
    assert found["connpool_pool_dial_seconds_count", "p"] == 5
    assert found["connpool_pool_dial_seconds_sum", "p"] == 2.5
    assert len(BOUNDS_SECONDS) == 29


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\\b", 'x"} 1\nevil 2', "größe"])
def test_namesAreEscaped(name):
    found = samples(exposed(Source("listener", name, ListenerStats(7, 0, 0, 0))))
    assert found["connpool_listener_connections", name] == 7
    assert not any("evil" in key[0] for key in found)


def test_twoClassesOfOneKindDoNotSpoilTheExposition():
    first = Source("listener", "a", ListenerStats(1, 2, 3, 4))
    second = Source("listener", "b", TransferStats(active=1))
    found = samples(exposed(within(None, first, second)))
    assert found["connpool_listener_connections", "a"] == 1
    assert found["connpool_listener_active", "b"] == 1


@pytest.mark.peer("promtool")
def test_promtoolFindsNothingToSay():
    root, _ = busy()
    text = generate_latest(makeRegistry([root]))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert b"process_resident_memory_bytes" in text
