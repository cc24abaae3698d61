"""
The page about the pool: every snippet runs.
"""

import ast
import re
import sys
import textwrap
from inspect import iscoroutine
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, clientFromString
from twisted.internet.protocol import Factory

import connpool.pool
from connpool.pool import ConnectionPool, KeyedConnectionPool, PooledEndpoint, PoolStats, Settings
from connpool.services.poolrelay import Options
from tests.functional.test_pool_peers import program, redis
from tests.helpers.ports import freePort
from tests.helpers.processes import CHECKOUT, finished
from tests.helpers.waiting import bounded
from tests.pool.servers import Server, Talker, makeAuthority, plainOrSecure, talkers

TEXT = (Path(__file__).parent.parent.parent / "docs" / "pool.rst").read_text()


def snippets():
    """
    The Python blocks, in order.
    """
    found = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", TEXT)
    return [textwrap.dedent(each) for each in found]


def recipe(caption):
    """
    A block that needs a server of its own, by its caption.
    """
    pattern = rf"\.\. code-block:: python\n   :caption: {caption}\n\n((?:   .*\n|\n)+)"
    (found,) = re.findall(pattern, TEXT)
    return textwrap.dedent(found)


async def runRecipe(text, **names):
    """
    Run a block, and close the pools that it made.
    """
    names = {"reactor": reactor, **names}
    code = compile(text, "pool.rst, recipe", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    try:
        await bounded(Deferred.fromCoroutine(eval(code, names)), 10.0)
    finally:
        for each in [*names.values(), *getattr(names.get("ahead"), "places", {}).values()]:
            if isinstance(each, (ConnectionPool, PooledEndpoint)):
                await bounded(each.close(), 10.0)


@pytest_twisted.ensureDeferred
async def test_everySnippetRuns():
    authority = makeAuthority()
    server = await Server().start()
    secure = await Server().start(authority)
    names = {
        "reactor": reactor,
        "endpoint": server.endpoint(),
        "otherEndpoint": server.endpoint(),
        "secureEndpoint": plainOrSecure(secure.number, authority),
        "endpointFor": lambda key: TCP4ClientEndpoint(reactor, "127.0.0.1", server.number),
        "factory": talkers(),
        "Factory": Factory,
        "Talker": Talker,
        "print": lambda *_: None,
    }
    ran = 0
    for number, snippet in enumerate(snippets()):
        code = compile(
            snippet, f"pool.rst, snippet {number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
        result = eval(code, names)  # a code object with "await" at its top is a coroutine
        if iscoroutine(result):
            try:
                await bounded(Deferred.fromCoroutine(result), 5.0)
            except Exception as e:
                raise AssertionError(f"{e!r} in:\n{snippet}") from e
        ran += 1
    assert ran == TEXT.count("code-block:: python\n\n") > 15
    for each in list(names.values()):
        if isinstance(each, (ConnectionPool, KeyedConnectionPool)):
            await bounded(each.close(1))
        elif isinstance(each, PooledEndpoint):
            await bounded(each.pool.close(0))
    await server.stop()
    await secure.stop()


@pytest.mark.peer("redis-server")
@pytest_twisted.ensureDeferred
async def test_theRecipeForRedisRuns(tmp_path):
    with redis(tmp_path) as server:
        await server.start()
        await runRecipe(recipe("redis").replace("6379", str(server.port)))


NGINX = """
daemon off; master_process off; pid %(where)s/pid; error_log %(where)s/log;
events {}
http {
  access_log off;
  server { listen 127.0.0.1:%(port)d; location / { return 200 "hello"; } }
}
"""


@pytest.mark.peer("nginx")
@pytest.mark.filterwarnings("ignore:Using readBody:DeprecationWarning")  # Twisted's own
@pytest_twisted.ensureDeferred
async def test_theRecipeForHTTPRuns(tmp_path):
    port = freePort()
    settings = tmp_path / "nginx.conf"
    settings.write_text(NGINX % {"where": tmp_path, "port": port})
    with program(port, "nginx", "-p", tmp_path, "-c", settings, "-e", tmp_path / "log") as server:
        await server.start()
        await runRecipe(recipe("http").replace("8080", str(port)))


ASYNCIO = """
import asyncio
from twisted.internet import asyncioreactor

loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
asyncioreactor.install(loop)

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory
from twisted.protocols.wire import Echo

from connpool.pool import ConnectionPool
from tests.pool.servers import talkers

port = reactor.listenTCP(0, Factory.forProtocol(Echo), interface="127.0.0.1").getHost().port
endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
pool = ConnectionPool(reactor, endpoint, talkers(), maxSize=1)
{recipe}
first, second = loop.run_until_complete(asyncio.wait_for(main(), 20))
assert (first, second) == (b"hello", b"again")

async def cancelled():
    # a task that leaves while it waits, and one that is cancelled after it was served
    lease = await pool.acquire().asFuture(loop)
    waiting = asyncio.ensure_future(served(pool.acquire()))
    await asyncio.sleep(0)
    assert pool.stats().waiting == 1
    waiting.cancel()
    await asyncio.sleep(0.01)
    assert pool.stats().waiting == 0
    waiting = asyncio.ensure_future(served(pool.acquire()))
    await asyncio.sleep(0)
    lease.release()
    waiting.cancel()
    await asyncio.sleep(0.01)
    assert (pool.stats().leased, pool.stats().leasesLostToGC) == (0, 1)

async def served(acquiring):
    return await acquiring.asFuture(loop)

loop.run_until_complete(asyncio.wait_for(cancelled(), 20))
loop.run_until_complete(asyncio.wait_for(pool.close(0).asFuture(loop), 20))
print("done")
"""


def test_theRecipeForAsyncioRuns():
    text = ASYNCIO.format(recipe=recipe("asyncio"))
    done = finished(sys.executable, "-c", text, cwd=CHECKOUT)
    assert done.stdout == "done\n", done.stderr
    assert done.returncode == 0


def test_everyEndpointStringIsOne():
    strings = re.findall(r"^   (pool:\S+)$", TEXT, re.MULTILINE)
    assert strings
    for each in strings:
        assert clientFromString(reactor, each)


def test_everyCommandLineIsOne():
    lines = re.findall(r"^   twistd (?:-\S+ )*connpool (.*)$", TEXT, re.MULTILINE)
    assert lines
    for each in lines:
        Options().parseOptions(each.split())


def test_everyLimitIsExplainedWithItsDefault():
    table = TEXT[TEXT.index("limit               default") : TEXT.index("How many?")]
    settings = Settings()
    for field in Settings.__attrs_attrs__:
        if field.name in {"lifetimeJitter", "queueTarget", "queueInterval"}:
            continue
        (line,) = re.findall(rf"^{field.name} +(.*)$", table, re.MULTILINE)
        value = getattr(settings, field.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert line.startswith(f"{value:g}"), field.name


def test_everyNumberIsExplained():
    numbers = TEXT[TEXT.index("Numbers\n---") : TEXT.index("Errors\n---")]
    for field in PoolStats.__attrs_attrs__:
        if field.name not in {"state", "maxSize", "waitMost"}:
            assert re.search(rf"\b{field.name}\b", numbers), field.name


def test_everyErrorIsExplained():
    errors = TEXT[TEXT.index("Errors\n---") :]
    for name in connpool.pool.__all__:
        cls = getattr(connpool.pool, name)
        if isinstance(cls, type) and issubclass(cls, Exception):
            assert name in errors
