"""
C{twistd compose}: any installed plugins, ours or not, in one process.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from twisted.application.service import IService, IServiceMaker, MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from twisted.plugin import getPlugins
from twisted.python import usage

from connpool.addresses import Listen, joinHostPort, parseListen
from connpool.errors import AddressError, StartFailed
from connpool.services.composefile import (
    Binding,
    Entry,
    argumentsOf,
    bindingOf,
    clashes,
    didYouMean,
    readEntries,
)
from connpool.services.limits import defaultConnections
from connpool.services.listening import describeListenError
from connpool.services.options import AccessOptions, ServiceOptions
from connpool.services.startfailure import failStart
from connpool.services.status import StatusOptions, observed

__all__ = ["Child", "ComposedService", "Options", "compose", "makeService"]


class Options(StatusOptions):
    pluginName = "compose"
    synopsis = "[options] FILE.toml"
    longdesc = (
        "Runs several services in one process. FILE has a table [services.NAME] for each, "
        'with plugin = "..." and the long options of that plugin as keys: lists repeat an '
        "option, true sets a flag, args = [] holds what is not an option."
    )
    optFlags = [["check", None, "Print the mistakes in FILE, start nothing, and exit."]]
    compData = usage.Completions(extraActions=[usage.CompleteFiles("*.toml")])

    def parseArgs(self, *files: str) -> None:
        if len(files) != 1:
            raise usage.UsageError("name one file; try: twistd -n --pidfile= compose FILE.toml")
        (self["file"],) = files

    def postOptions(self) -> None:
        super().postOptions()
        path = self["file"]
        try:
            with open(path, encoding="utf-8-sig") as file:
                self["text"] = file.read()
        except (OSError, UnicodeDecodeError) as e:
            why = e.strerror if isinstance(e, OSError) else "it is not UTF-8"
            raise usage.UsageError(f"cannot read {path}: {why}") from None
        if self["check"]:
            try:
                service = compose(self["text"], path, check=True, status=self["status"])
            except StartFailed as e:
                sys.exit(str(e))
            count = len(service.services)
            print(f"{path}: {count} services, no mistake found")  # noqa: T201 - asked for
            sys.exit(0)


class Child(MultiService):
    """
    Holds one composed service, and gives its failures the service's name.
    """

    _log = Logger()

    def __init__(self, name: str, plugin: str, service: Any) -> None:
        super().__init__()
        self.name = name
        self._describe = partial(describe, name, plugin)
        self._begun = False
        service.setServiceParent(self)

    def _start(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (Exception, SystemExit) as e:
            # stop what did begin; some services of Twisted's cannot be stopped before a start
            (service,) = self
            maybeDeferred(service.stopService).addErrback(lambda _: None)
            failStart(self._describe(e))
        self._begun = True

    def privilegedStartService(self) -> None:
        self._start(super().privilegedStartService)

    def startService(self) -> None:
        self._start(super().startService)

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        if not self._begun:
            return succeed(None)
        self._begun = False
        (service,) = self
        return maybeDeferred(service.stopService).addErrback(
            lambda failure: self._log.failure(
                "services.{name} did not stop cleanly", failure, name=self.name
            )
        )


class ComposedService(MultiService):
    """
    The services of one file, each a L{Child} with the name it has there.

    If one cannot start, those that began are stopped.
    """

    name = "compose"

    def privilegedStartService(self) -> None:
        self._start(super().privilegedStartService)

    def startService(self) -> None:
        self._start(super().startService)

    def _start(self, step: Callable[[], None]) -> None:
        try:
            step()
        except StartFailed:
            self.stopService()
            raise


def describe(name: str, plugin: str, error: BaseException) -> str:
    """
    @return: the reason why a service did not start, in one line.
    """
    if isinstance(error, StartFailed):
        said = str(error)
        for prefix in (name, plugin):
            said = said.removeprefix(f"{prefix}: ")
    elif isinstance(error, CannotListenError):
        said = describeListenError(joinHostPort(error.interface or "*", error.port), error)
    elif isinstance(error, usage.UsageError):
        said = f"{_firstLine(error)}; see twistd {plugin} --help"
    elif isinstance(error, SystemExit):
        said = f"{plugin} ended instead of giving a service; take out what makes it print or exit"
        if isinstance(error.code, str):
            said = error.code.strip().partition("\n")[0]
    else:
        said = f"{type(error).__name__}: {_firstLine(error)}; see twistd {plugin} --help"
    return f"services.{name}: {said}"


def _firstLine(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or "no reason given"


def compose(
    text: str,
    path: str = "compose",
    reactor: Any = None,
    *,
    check: bool = False,
    status: Listen | None = None,
) -> ComposedService:
    """
    Make the services that a file asks for.

    @param text: what is in the file.
    @param path: its name, for messages.
    @param reactor: for plugins whose C{makeService} takes one; L{None} for the
        global one.
    @param status: where the status page of all of them will be.
    @param check: look also for what a start would find, as L{ServiceOptions.check}.
    @raise StartFailed: its text has one line for each mistake.
    """
    mistakes: list[str] = []
    try:
        entries = readEntries(text, mistakes)
    except (ValueError, RecursionError) as e:
        failStart(f"{path}: not TOML: {_firstLine(e)}")
    mistakes = [line if line.startswith("services.") else f"{path}: {line}" for line in mistakes]
    makers = {maker.tapname: maker for maker in getPlugins(IServiceMaker)}
    composed = ComposedService()
    bindings: list[tuple[str, str, Binding]] = []
    if status is not None and (binding := bindingOf(status)) is not None:
        bindings.append(("--status", status.description, binding))
    share = defaultConnections(max(1, len(entries)))
    for entry in entries:
        try:
            maker, options = _configure(entry, makers, share, mistakes)
            if options is not None:
                bindings += _bindings(entry, options)
                if check and isinstance(options, ServiceOptions):
                    options.check()
                make = maker.makeService
                extra = {"reactor": reactor} if _takesReactor(make) else {}
                service = make(options, **extra)
                if not IService.providedBy(service):
                    raise TypeError(f"its makeService gave {type(service).__name__}, no service")
                Child(entry.name, entry.plugin, service).setServiceParent(composed)
        except (Exception, SystemExit) as e:
            mistakes.append(describe(entry.name, entry.plugin, e))
    mistakes += clashes(bindings)
    if mistakes:
        failStart("\n".join(mistakes))
    return composed


def _configure(
    entry: Entry, makers: dict[str, Any], share: int, mistakes: list[str]
) -> tuple[Any, usage.Options | None]:
    """
    @param share: connections for this service, of those the process can have.
    @return: the plugin and its parsed options; no options after a mistake
        that was added to C{mistakes}.
    """
    if entry.plugin == Options.pluginName:
        raise StartFailed("compose cannot hold itself; put its services into this file")
    maker = makers.get(entry.plugin)
    if maker is None:
        raise StartFailed(
            f"no plugin is called {entry.plugin!r}{didYouMean(entry.plugin, makers)}"
            " (twistd --help lists them)"
        )
    options = maker.options()
    if "allow-root" in entry.options and isinstance(options, ServiceOptions):
        raise StartFailed("allow-root is about the process; give it to twistd compose")
    before = len(mistakes)
    words = argumentsOf(entry, options, mistakes)
    if len(mistakes) > before:
        return maker, None
    # first, so that what the file says wins
    if isinstance(options, ServiceOptions) and "name=" in options.longOpt:
        words.insert(0, f"--name={entry.name}")
    if isinstance(options, AccessOptions):
        words.insert(0, f"--max-connections={share}")
    options.parseOptions(words)
    return maker, options


def _takesReactor(make: Callable[..., Any]) -> bool:
    try:
        return "reactor" in inspect.signature(make).parameters
    except (TypeError, ValueError):
        return False


def _bindings(entry: Entry, options: usage.Options) -> Iterator[tuple[str, str, Binding]]:
    """
    @return: the listeners of C{entry}, as far as C{listen} and C{status} say them.
    """
    listens: list[Any] = []
    for key in ("listen", "status"):
        given = options.get(key) or entry.options.get(key) or ()
        listens += given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    for listen in listens:
        try:
            parsed = listen if isinstance(listen, Listen) else parseListen(str(listen))
        except AddressError:
            continue  # the plugin says what is wrong with it
        binding = bindingOf(parsed)
        if binding is not None:
            yield f"services.{entry.name}", parsed.description, binding


def makeService(options: Options, reactor: Any = None) -> IService:
    """
    @param options: parsed.
    @param reactor: for plugins whose C{makeService} takes one.
    """
    composed = compose(options["text"], options["file"], reactor, status=options["status"])
    if reactor is None:
        from twisted.internet import reactor
    return observed(options, composed, reactor)
