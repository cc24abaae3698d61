"""
S3 engines on this machine, to try the store with: every port on loopback, random keys, and
nothing that calls home.  C{engines.txt} beside this file says which; the directory of their
programs is in C{CONNPOOL_ENGINES}, or they are on the PATH.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import attrs

from connpool.transfer.stores.s3 import calls
from connpool.transfer.stores.s3.answers import answerOf
from connpool.transfer.stores.s3.replies import Reply
from connpool.transfer.stores.s3.requests import Outgoing, Place, compose, signed
from connpool.transfer.stores.s3.signing import Keys, Signer, encodedPath

#: Seconds in which an engine has to be up, or gone.
START_SECONDS, STOP_SECONDS = 30.0, 10.0
REGION = "us-east-1"


def program(name: str) -> str | None:
    """
    Return the path of an engine's program; L{None} if it is not installed.
    """
    return shutil.which(name, path=os.environ.get("CONNPOOL_ENGINES")) or shutil.which(name)


def freePorts(count: int) -> list[int]:
    """
    Return neighbouring ports that are free, and so are those 10,000 higher.
    """
    while True:
        first = random.SystemRandom().randrange(10_000, 20_000)
        ports = list(range(first, first + count))
        try:
            for port in [*ports, *(port + 10_000 for port in ports)]:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return ports


@attrs.define
class RunningEngine:
    """
    An engine that runs.

    @ivar environment: in which programs find its keys.
    @ivar context: that trusts its certificate, if it has one.
    """

    url: str
    keys: Keys
    command: list[str]
    more: dict[str, str]
    log: Path
    context: ssl.SSLContext | None = None
    process: Any = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.keys.access,
            "AWS_SECRET_ACCESS_KEY": self.keys.secret,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """
        Start it, also again after L{kill}, and wait until it answers.
        """
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.more},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"{self.command[0]} did not start; see {self.log}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5, context=self.context):
                return True
        except urllib.error.HTTPError as e:
            return e.code == 403  # it asks who we are
        except OSError:
            return False

    def kill(self) -> None:
        """
        Kill it, as a lost machine would end.
        """
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(STOP_SECONDS)
            self.process = None

    def stop(self) -> None:
        """
        Stop it.
        """
        if self.process is None:
            return
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        self.kill()

    def open(self, method: str, path: str, query: str = "") -> Any:
        """
        Make a signed request; the answer is a context manager.
        """
        outgoing = Outgoing(method, path, query, [])
        host = self.url.partition("://")[2]
        headers = dict(signed(outgoing, host, self.keys, Signer(REGION), time.time()))
        data = b"" if method == "PUT" else None
        request = urllib.request.Request(
            self.url + outgoing.target, data=data, headers=headers, method=method
        )
        return urllib.request.urlopen(request, timeout=30, context=self.context)

    def makeBucket(self, name: str) -> None:
        """
        Make a bucket.
        """
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with self.open("PUT", f"/{name}"):
                    return
            except urllib.error.HTTPError as e:
                # it answers before all of it is up
                if e.code < 500 or time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def names(self, bucket: str, prefix: str) -> list[str]:
        """
        Return the keys below a prefix, of a thousand at most.
        """
        call = calls.List(prefix)
        outgoing = compose(call, Place(bucket, bucket))
        with self.open("GET", outgoing.path, outgoing.query) as answer:
            reply = Reply(200, {}, answer.read())
        return [entry.key for entry in answerOf(call, reply).entries]

    def digest(self, bucket: str, key: str) -> bytes:
        """
        Return the SHA-256 of an object.
        """
        digest = hashlib.sha256()
        with self.open("GET", encodedPath(bucket, key)) as answer:
            while piece := answer.read(1 << 20):
                digest.update(piece)
        return digest.digest()


@contextmanager
def running(engine: RunningEngine, bucket: str) -> Iterator[RunningEngine]:
    engine.start()
    try:
        engine.makeBucket(bucket)
        yield engine
    finally:
        engine.stop()


@contextmanager
def seaweedfs(
    directory: Path,
    bucket: str = "files",
    *,
    memory: str | None = "300MiB",
    certificate: Path | None = None,
    context: ssl.SSLContext | None = None,
) -> Iterator[RunningEngine]:
    """
    Run SeaweedFS, which can do all that the store asks for.

    @param directory: for its files.
    @param memory: that it tries to stay below.
    @param certificate: and key, in one file, for TLS.
    @param context: that trusts it.
    """
    weed = program("weed")
    assert weed is not None, "SeaweedFS is not installed"
    keys = Keys(secrets.token_hex(10), secrets.token_hex(20))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "data").mkdir(exist_ok=True)
    identity = {
        "name": "connpool",
        "credentials": [{"accessKey": keys.access, "secretKey": keys.secret}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    configuration = directory / "s3.json"
    configuration.write_text(json.dumps({"identities": [identity]}))
    s3, master, volume, filer, admin = freePorts(5)
    command = [
        *(weed, "-logtostderr=true", "mini", f"-dir={directory / 'data'}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
        *("-master.electionTimeout=1s", "-webdav=false", "-admin.ui=false"),
        *(f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}"),
        *(f"-filer.port={filer}", f"-admin.port={admin}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={configuration}"),
    ]
    more = {} if memory is None else {"GOMEMLIMIT": memory}
    url = f"http://127.0.0.1:{s3}"
    if certificate is not None:
        # the port of plain HTTP stays open beside it
        (secure,) = freePorts(1)
        command += [f"-s3.port.https={secure}", f"-s3.cert.file={certificate}"]
        command += [f"-s3.key.file={certificate}"]
        url = f"https://127.0.0.1:{secure}"
    engine = RunningEngine(url, keys, command, more, directory / "log", context)
    try:
        with running(engine, bucket):
            yield engine
    finally:
        for port in (s3, master, volume, filer, admin):
            for socketPath in Path(gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                socketPath.unlink(missing_ok=True)


@contextmanager
def juicefs(directory: Path, bucket: str = "files") -> Iterator[RunningEngine]:
    """
    Run the gateway of JuiceFS, which takes conditions and does not look at them.
    """
    juice = program("juicefs")
    assert juice is not None, "JuiceFS is not installed"
    keys = Keys(secrets.token_hex(10), secrets.token_hex(20))
    (directory / "data").mkdir(parents=True)
    volume = f"sqlite3://{directory / 'meta.db'}"
    subprocess.run(
        [
            *(juice, "format", "--no-update", "--storage", "file", "--trash-days", "0"),
            *("--bucket", f"{directory / 'data'}/", volume, "lab"),
        ],
        check=True,
        capture_output=True,
        timeout=START_SECONDS,
    )
    (port,) = freePorts(1)
    command = [
        *(juice, "gateway", "--no-usage-report", "--no-banner", "--multi-buckets"),
        *("--keep-etag", "--object-meta", "--backup-meta", "0", "--cache-size", "64"),
        *("--log", str(directory / "log"), "--cache-dir", str(directory / "cache")),
        *(volume, f"127.0.0.1:{port}"),
    ]
    more = {"MINIO_ROOT_USER": keys.access, "MINIO_ROOT_PASSWORD": keys.secret}
    url = f"http://127.0.0.1:{port}"
    with running(RunningEngine(url, keys, command, more, directory / "out"), bucket) as engine:
        yield engine
