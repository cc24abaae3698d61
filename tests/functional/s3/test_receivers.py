"""
C{twistd filerecv --store s3:…} from the outside.
"""

import hashlib
import os
import sys

import pytest

from examples.s3.demo import receivers
from tests.helpers.processes import connpool, finished

pytestmark = pytest.mark.slow

FILERECV = ["-n", "--pidfile=", "filerecv", "--listen=tcp:0:interface=127.0.0.1"]


def start(store, **extra):
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
    return finished(*command, *FILERECV, f"--store={store}", **extra)


@pytest.mark.peer("juicefs")
def test_anEngineThatIsRefused(juice):
    ended = start(f"s3:bucket=files,endpoint={juice.url}", **juice.environment)
    assert ended.returncode == 1
    line = ended.stderr.splitlines()[-1]
    assert line.startswith(f"filerecv: MinIO at {juice.url} cannot be shared: ")
    assert juice.keys.secret not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


@pytest.mark.peer("weed")
@pytest.mark.parametrize(
    ("store", "environment", "words"),
    [
        ("bucket=other-bucket", {}, "make the bucket other-bucket first"),
        ("bucket=files", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "the secret key is not the one"),
        ("bucket=files,spool=/no/such/directory", {}, "spool="),
    ],
    ids=range(3),
)
def test_oneLine(weed, store, environment, words):
    url = f"s3:{store},endpoint={weed.url}"
    ended = start(url, **{**weed.environment, **environment})
    assert ended.returncode == 1
    assert words in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stdout + ended.stderr
    assert weed.keys.secret not in ended.stdout + ended.stderr


@pytest.mark.peer("weed")
def test_noKeys(weed, tmp_path):
    empty = str(tmp_path / "none")
    ended = start(
        f"s3:bucket=files,endpoint={weed.url}",
        AWS_EC2_METADATA_DISABLED="true",
        AWS_SHARED_CREDENTIALS_FILE=empty,
        AWS_CONFIG_FILE=empty,
    )
    assert ended.returncode == 1
    assert "no access keys were found" in ended.stderr.splitlines()[-1]


@pytest.mark.peer("weed", "curl")
def test_twoReceiversShareFiles(weed, tmp_path, prefix):
    """
    Natively and by HTTP: what one has, the other knows; numbers and logs tell nothing secret.
    """
    source = tmp_path / "source.bin"
    source.write_bytes(os.urandom(20 << 20))
    with receivers(tmp_path, weed, 2, prefix=prefix.rstrip("/")) as (one, two):
        sent = connpool("send", "--to", f"proxyheader:tcp:127.0.0.1:{one.port}", source)
        assert sent.returncode == 0, sent.stderr
        again = connpool("send", "--to", f"proxyheader:tcp:127.0.0.1:{two.port}", source, "--json")
        assert '"duplicate"' in again.stdout
        assert "connpool_s3_requests_total" in two.answers("/metrics")
        assert one.answers("/readyz") == "ready\n"
        refused = connpool(
            *("send", "--to", f"proxyheader:tcp:127.0.0.1:{two.port}", "--if-exists=refuse"),
            *("--name=source.bin", "-"),
            timeout=60,
        )
        assert refused.returncode == 4
        page = two.answers("/status.json") + two.answers("/metrics")
    names = weed.names("files", prefix)
    assert names == [f"{prefix}source.bin"]
    assert weed.digest("files", names[0]) == hashlib.sha256(source.read_bytes()).digest()
    logs = "".join((tmp_path / f"receiver{n}.log").read_text() for n in (0, 1))
    assert weed.keys.secret not in page + logs
    assert "Signature=" not in page + logs
