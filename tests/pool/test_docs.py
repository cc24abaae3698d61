"""
The page about the pool: every snippet runs.
"""

import ast
import re
import textwrap
from inspect import iscoroutine
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, clientFromString
from twisted.internet.protocol import Factory

import connpool.pool
from connpool.pool import ConnectionPool, KeyedConnectionPool, PooledEndpoint, PoolStats, Settings
from connpool.services.poolrelay import Options
from tests.helpers.waiting import bounded
from tests.pool.servers import Server, Talker, makeAuthority, plainOrSecure, talkers

TEXT = (Path(__file__).parent.parent.parent / "docs" / "pool.rst").read_text()


def snippets():
    """
    The Python blocks, in order.
    """
    found = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", TEXT)
    return [textwrap.dedent(each) for each in found]


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
            from twisted.internet.defer import Deferred

            try:
                await bounded(Deferred.fromCoroutine(result), 5.0)
            except Exception as e:
                raise AssertionError(f"{e!r} in:\n{snippet}") from e
        ran += 1
    assert ran == TEXT.count("code-block::") > 15
    for each in list(names.values()):
        if isinstance(each, (ConnectionPool, KeyedConnectionPool)):
            await bounded(each.close(1))
        elif isinstance(each, PooledEndpoint):
            await bounded(each.pool.close(0))
    await server.stop()
    await secure.stop()


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
