"""
The start and the end of the C{connpool} program.
"""

import subprocess
import sys

from benchmarks.processes import freePort
from tests.helpers.processes import environment

#: Runs the program and prints its exit code, how often the collector ran, and whether
#: what was imported is kept from it at the end.
WATCHED = """
import gc, sys
runs = []
gc.callbacks.append(lambda phase, _: phase == "start" and runs.append(phase))
from connpool.commands import program
runs.clear()
code = program()
print(code, len(runs), gc.get_freeze_count() > 20_000)
"""


def test_theCollectorDoesNotWalkWhatIsImported(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    words = [
        "send",
        "--protocol",
        "classic",
        "--to",
        f"127.0.0.1:{freePort()}",
        str(tmp_path / "f"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *words],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
        env=environment(),
    )
    assert done.stdout == "7 0 True\n"


def test_aMistakeEndsAsBefore(tmp_path):
    for words, code in ((["send"], 2), (["--version"], 0), (["nothing"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "connpool", *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
            env=environment(),
        )
        assert done.returncode == code
        assert "Traceback" not in done.stderr


#: Modules beyond those of the reactor; each costs about a millisecond.
MODULES = 95
#: What sending has no use for.
ELSEWHERE = {
    *("rich", "prometheus_client", "psutil", "twisted.web", "twisted.cred", "hypothesis"),
    *("connpool.services", "connpool.observe", "connpool.pool", "connpool.datagram"),
    *("connpool.transfer.receive", "connpool.transfer.stores", "connpool.transfer.web"),
}
LOADED = """
import sys
from twisted.internet import reactor, endpoints
before = set(sys.modules)
from connpool.commands import main
code = main()
print(*sorted(set(sys.modules) - before))
"""


def test_sendingImportsWhatItNeeds(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    # found out after everything was imported, and before anybody is connected to
    words = ["send", "--receipt", str(tmp_path / "nothing/at-all")]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words, str(tmp_path / "f")],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )
    loaded = done.stdout.split()
    assert "connpool.transfer.send.transmission" in loaded
    assert not ELSEWHERE & set(loaded)
    assert len(loaded) <= MODULES, len(loaded)


#: What a receiver has no use for while it waits: for each, somebody has to send a large file, ask
#: for it, or stand in the way.
NOT_YET = {
    *("automat", "tomllib", "xxhash", "zstandard", "h11", "twisted.web", "prometheus_client"),
    *("connpool.proxyprotocol", "connpool.tlstransport", "connpool.observe"),
    *("connpool.addresses.clientstrings", "connpool.addresses.names"),
    *("connpool.services.onreceived", "connpool.services.beforepublish"),
    *("connpool.transfer.receive.stream", "connpool.transfer.receive.upload"),
    *("connpool.transfer.stores.memory", "connpool.transfer.stores.s3", "connpool.transfer.send"),
}
WAITING = """
import sys
from twisted.internet import reactor
from connpool.services.filerecv import Options, makeService
options = Options()
options.parseOptions(["--directory", ".", "--listen", "tcp:0:interface=127.0.0.1"])
service = makeService(options)
service.startService()
reactor.callLater(0, reactor.stop)
reactor.run()
print(*sys.modules)
"""


def test_aWaitingReceiverImportsWhatItNeeds(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WAITING],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment(),
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "connpool.transfer.receive.session" in loaded
    assert sorted(NOT_YET & loaded) == []
