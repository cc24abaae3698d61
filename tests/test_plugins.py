"""
What C{twistd} finds, and at what price.
"""

import subprocess
import sys

import pytest
from twisted.application.service import IServiceMaker
from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin, getPlugins
from twisted.python import usage
from zope.interface.verify import verifyObject

import twisted.plugins.connpool_plugins as dropin
from connpool.interfaces import IFileStoreFactory
from tests.helpers.processes import environment

HEAVY = """
import sys, twisted.plugins.connpool_plugins
print([
    name for name in sys.modules
    if name == "twisted.internet.reactor"
    or name.startswith("connpool.") and name != "connpool.plugin"
])
"""

OURS = [value for name, value in vars(dropin).items() if IPlugin.providedBy(value)]
SERVICES = [plugin for plugin in OURS if IServiceMaker.providedBy(plugin)]
INTERFACES = (
    IServiceMaker,
    IStreamServerEndpointStringParser,
    IStreamClientEndpointStringParserWithReactor,
    IFileStoreFactory,
)


def wordOf(plugin):
    """
    The word that chooses it.
    """
    names = ("tapname", "prefix", "name")
    return next(word for name in names if (word := getattr(plugin, name, None)))


@pytest.mark.parametrize("plugin", OURS, ids=wordOf)
def test_twistedFindsIt(plugin):
    (interface,) = [each for each in INTERFACES if each.providedBy(plugin)]
    verifyObject(interface, plugin)
    assert any(wordOf(found) == wordOf(plugin) for found in getPlugins(interface))


@pytest.mark.parametrize("maker", SERVICES, ids=lambda maker: maker.tapname)
def test_everyOptionIsExplained(maker):
    options = maker.options()
    assert isinstance(options, usage.Options)
    text = str(options)
    for name in options.longOpt:
        assert f"--{name.rstrip('=')}" in text
    for _, _, default, *rest in options.docs and getattr(maker.options, "optParameters", []):
        assert rest, f"{maker.tapname}: an option without a text"
        assert default is None or isinstance(default, str), "defaults are checked like other texts"


def test_importingThePluginsImportsNothingHeavy():
    heavy = subprocess.run(
        [
            sys.executable,
            "-c",
            HEAVY,
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    ).stdout
    assert heavy.strip() == "[]"
