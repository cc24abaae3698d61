"""
The pool against real servers: Redis and nginx, plain and with TLS; cut, frozen
and restarted while they are used.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from contextlib import contextmanager

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.error import ConnectionClosed
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from connpool.interfaces import IPoolable
from connpool.pool import ConnectionPool, PoolError
from tests.helpers.ports import freePort
from tests.helpers.protocols import Trusting
from tests.helpers.waiting import bounded, pause, until
from tests.pool.servers import makeAuthority, plainOrSecure


class Program:
    """
    A server program that can be started again.
    """

    def __init__(self, port, *command):
        self.port = port
        self._command = [str(word) for word in command]
        self.process = None

    async def start(self):
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        await until(self._answers)

    def _answers(self):
        assert self.process.poll() is None, f"{self._command} ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)


@contextmanager
def program(port, *command):
    """
    However the test ends, the program is gone.
    """
    started = Program(port, *command)
    try:
        yield started
    finally:
        started.stop()


def certificates(directory):
    """
    @return: an authority; its certificates are in C{directory}.
    """
    authority = makeAuthority()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(directory / "cert.pem", append=True)
    return authority


class Asking(Trusting, Protocol):
    """
    One question at a time, and whether the connection is dead.
    """

    def __init__(self):
        self._buffer = b""
        self._answer = None
        self.dead = False

    def question(self, data):
        assert not self.dead, "a dead connection was handed out"
        assert self._answer is None, "a connection has two users"
        answer = self._answer = Deferred()
        self.transport.write(data)
        return answer

    def dataReceived(self, data):
        self._buffer += data
        parsed = self.parse(self._buffer)
        if parsed is not None:
            value, self._buffer = parsed
            answer, self._answer = self._answer, None
            answer.callback(value)

    def connectionLost(self, reason):
        self.dead = True
        if self._answer is not None:
            answer, self._answer = self._answer, None
            answer.errback(reason)

    def isReusable(self):
        return self._answer is None and not self._buffer


@implementer(IPoolable)
class Redis(Asking):
    """
    As much of RESP as the tests speak.
    """

    def ask(self, *words):
        encoded = [str(word).encode() for word in words]
        parts = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        return self.question(b"*%d\r\n%s" % (len(encoded), parts))

    @staticmethod
    def parse(data):
        line, end, rest = data.partition(b"\r\n")
        if not end:
            return None
        if line[:1] != b"$":
            return line, rest
        count = int(line[1:])
        return (rest[:count], rest[count + 2 :]) if len(rest) >= count + 2 else None


@implementer(IPoolable)
class HTTP(Asking):
    """
    As much of HTTP/1.1 as the tests speak.
    """

    closing = False

    def get(self, path):
        return self.question(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())

    def parse(self, data):
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            return None
        fields = dict(
            line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line
        )
        count = int(fields[b"content-length"])
        if len(rest) < count:
            return None
        self.closing = fields.get(b"connection") == b"close"
        return rest[:count], rest[count:]

    def isReusable(self):
        return super().isReusable() and not self.closing


def makePool(port, protocol, authority=None, **limits):
    """
    @return: a pool of impatient limits.
    """
    factory = Factory.forProtocol(protocol)
    factory.noisy = False
    limits = {
        "maxSize": 5,
        "connectTimeout": 1.0,
        "closeTimeout": 1.0,
        "acquireTimeout": 5.0,
        "backoff": lambda failures: 0.05,
    } | limits
    return ConnectionPool(reactor, plainOrSecure(port, authority), factory, **limits)


class Load:
    """
    Workers that ask all the time.

    @param patience: seconds that they wait for an answer.
    @ivar good: answers; C{failed}: requests that failed; C{wrong}: answers to
        somebody else's question.
    """

    def __init__(self, pool, workers, ask, patience=0.5):
        self.good = self.failed = self.wrong = 0
        self._running = True
        self._pool = pool
        self._ask = ask
        self._patience = patience
        self._workers = [ensureDeferred(self._work(number)) for number in range(workers)]

    async def _work(self, number):
        turn = 0
        while self._running:
            turn += 1
            try:
                async with self._pool.lease() as protocol:
                    asked = self._ask(protocol, f"{number}.{turn}")
                    answer = await asked.addTimeout(self._patience, reactor)
            except (PoolError, ConnectionClosed, Late):
                self.failed += 1
                await pause(0.01)
            else:
                self.good += 1
                self.wrong += answer != f"{number}.{turn}".encode()

    async def goesOn(self, count=50):
        """
        So many more are answered.
        """
        goal = self.good + count
        await until(lambda: self.good >= goal)

    async def stop(self):
        self._running = False
        await bounded(gatherResults(self._workers))


@contextmanager
def redis(directory, authority=None):
    port = freePort()
    arguments = ["--port", port]
    if authority is not None:
        arguments = [
            "--port", 0, "--tls-port", port, "--tls-auth-clients", "no",
            "--tls-cert-file", directory / "cert.pem", "--tls-key-file", directory / "key.pem",
            "--tls-ca-cert-file", directory / "ca.pem",
        ]  # fmt: skip
    common = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", directory]
    with program(port, "redis-server", *arguments, *common) as server:
        yield server


def asking(protocol, text):
    return protocol.ask("ECHO", text)


async def admin(server, authority):
    """
    @return: a connection beside the pool's.
    """
    pool = makePool(server.port, Redis, authority)
    return pool, (await bounded(pool.acquire()))


def figure(info, name):
    """
    @return: a number of Redis' INFO.
    """
    (line,) = [line for line in info.split(b"\r\n") if line.startswith(name + b":")]
    return int(line.split(b":")[1])


@pytest.mark.peer("redis-server")
@pytest.mark.parametrize("secured", [False, True])
@pytest_twisted.ensureDeferred
async def test_redisNeverSeesMoreThanMaxSizeAndNobodyReadsAnothersAnswer(tmp_path, secured):
    authority = certificates(tmp_path) if secured else None
    with redis(tmp_path, authority) as server:
        await server.start()
        pool = makePool(server.port, Redis, authority, prepare=lambda each: each.ask("PING"))
        beside, lease = await admin(server, authority)
        # one that is given up is another connection before Redis sees its end
        load = Load(pool, 20, asking, patience=10)
        most = 0
        for _ in range(10):
            await load.goesOn(30)
            info = await bounded(lease.protocol.ask("INFO", "clients"))
            most = max(most, figure(info, b"connected_clients") - 1)
        # cut: every connection but the asking one
        for _ in range(5):
            await bounded(lease.protocol.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
            await load.goesOn(30)
            info = await bounded(lease.protocol.ask("INFO", "clients"))
            most = max(most, figure(info, b"connected_clients") - 1)
        await load.stop()
        assert load.wrong == 0
        assert 2 <= most <= 5
        assert pool.stats().closed["peer"] >= 5
        lease.release()
        await bounded(beside.close())
        await bounded(pool.close())


@pytest.mark.peer("redis-server")
@pytest_twisted.ensureDeferred
async def test_idleConnectionsThatRedisCutAreNotHandedOut(tmp_path):
    with redis(tmp_path) as server:
        await server.start()
        pool = makePool(server.port, Redis)
        beside, admin_ = await admin(server, None)
        for _ in range(5):
            leases = [await bounded(pool.acquire()) for _ in range(5)]
            for lease in leases:
                await bounded(lease.protocol.ask("PING"))
                lease.release()
            await until(lambda: pool.stats().idle == 5)  # after two turns of the reactor
            await bounded(admin_.protocol.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))
            await until(lambda: pool.stats().idle == 0)
            for _ in range(5):  # not one of these fails
                assert await bounded(pool.run(Redis.ask, "PING")) == b"+PONG"
        admin_.release()
        await bounded(beside.close())
        await bounded(pool.close())


@pytest.mark.peer("redis-server")
@pytest.mark.parametrize("secured", [False, True])
@pytest_twisted.ensureDeferred
async def test_thePoolRecoversFromAFrozenAndFromARestartedRedis(tmp_path, secured):
    authority = certificates(tmp_path) if secured else None
    with redis(tmp_path, authority) as server:
        await server.start()
        pool = makePool(server.port, Redis, authority, prepare=lambda each: each.ask("PING"))
        load = Load(pool, 10, asking)
        await load.goesOn()
        server.signal(signal.SIGSTOP)
        failed = load.failed
        await until(lambda: load.failed > failed + 10)
        assert pool.stats().size <= 5
        server.signal(signal.SIGCONT)
        await load.goesOn()
        server.stop()
        failed = load.failed
        await until(lambda: load.failed > failed + 10)
        await until(lambda: pool.stats().down)
        await server.start()
        await load.goesOn()
        await load.stop()
        assert load.wrong == 0
        # and nothing is left over: the pool is as good as new
        before = load.failed
        leases = [await bounded(pool.acquire()) for _ in range(5)]
        for lease in leases:
            assert await bounded(lease.protocol.ask("ECHO", "whole")) == b"whole"
            lease.release()
        assert load.failed == before
        await bounded(pool.close())


NGINX = """
daemon off; master_process off; worker_processes 1; error_log {directory}/error.log;
pid {directory}/nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 20; keepalive_timeout 1s; client_header_timeout 1s;
    server {{
        listen 127.0.0.1:{port}{secure};
        {certificate}
        location / {{ default_type text/plain; return 200 $arg_echo; }}
    }}
}}
"""


@pytest.mark.peer("nginx")
@pytest.mark.parametrize("secured", [False, True])
@pytest_twisted.ensureDeferred
async def test_nginxClosesConnectionsAndNoRequestFails(tmp_path, secured):
    authority = certificates(tmp_path) if secured else None
    port = freePort()
    certificate = f"ssl_certificate {tmp_path}/cert.pem; ssl_certificate_key {tmp_path}/key.pem;"
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        NGINX.format(
            directory=tmp_path,
            port=port,
            secure=" ssl" if secured else "",
            certificate=certificate if secured else "",
        )
    )
    with program(port, "nginx", "-p", tmp_path, "-c", configuration) as server:
        await server.start()
        pool = makePool(port, HTTP, authority, connectTimeout=10.0, acquireTimeout=10.0)

        def echoed(protocol, text):
            return protocol.get(f"/?echo={text}")

        # nginx says "close" after 20 requests: each is heard
        load = Load(pool, 10, echoed, patience=10)
        await load.goesOn(400)
        await load.stop()
        assert (load.failed, load.wrong) == (0, 0)
        stats = pool.stats()
        assert stats.dials >= 400 // 20
        assert stats.size <= 5
        # and after a second of silence: noticed when it happens, not when it hurts
        await until(lambda: pool.stats().idle == 0)
        assert await bounded(pool.run(HTTP.get, "/?echo=again")) == b"again"
        # a restart while it is used
        load = Load(pool, 10, echoed)
        await load.goesOn()
        server.stop()
        await until(lambda: load.failed > 10)
        await server.start()
        await load.goesOn()
        await load.stop()
        assert load.wrong == 0
        await bounded(pool.close())


@pytest_twisted.ensureDeferred
async def test_aWrongCertificateIsAFailedDial(tmp_path):
    from connpool.pool import ConnectFailed
    from tests.pool.servers import Server, Talker

    server = await Server().start(makeAuthority())
    pool = makePool(server.number, Talker, makeAuthority())
    with pytest.raises(ConnectFailed):
        await bounded(pool.acquire())
    await until(lambda: pool.stats().size == 0)
    await bounded(pool.close())
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_aDroppedLeaseComesBackFromWhateverThreadCollectsIt():
    import gc

    from twisted.internet.threads import deferToThread

    from tests.pool.servers import Server, Talker

    server = await Server().start()
    pool = makePool(server.number, Talker, maxSize=1)
    for collect in (gc.collect, lambda: deferToThread(gc.collect)):
        dropped = [await bounded(pool.acquire())]
        dropped.append(dropped)  # only the collector finds it
        del dropped
        await collect() if collect is not gc.collect else collect()
        lease = await bounded(pool.acquire())
        assert await bounded(lease.protocol.ask(b"again")) == b"again"
        lease.release()
    assert pool.stats().leasesLostToGC == 2
    await bounded(pool.close())
    await server.stop()
