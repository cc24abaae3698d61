"""
A store of one's own: every day (in UTC) has its directory.

    twistd -n --pidfile= filerecv --store dated:/srv/files

Where the file lies, and what it must not import, says examples/listener. A
store that keeps files elsewhere provides IFileStore and IPartial in full; this
one leaves all but the names to the local store.
"""

from datetime import UTC, datetime

import attrs
from twisted.plugin import IPlugin
from twisted.python.components import proxyForInterface
from zope.interface import implementer

from connpool.interfaces import IFileStore, IFileStoreFactory


class DatedStore(proxyForInterface(IFileStore, "_store")):
    @staticmethod
    def _dated(name):
        from connpool.transfer import RelativeName

        return name.under(RelativeName.parse(f"{datetime.now(UTC):%Y-%m-%d}"))

    def open(self, offer, holder=None):
        return self._store.open(attrs.evolve(offer, name=self._dated(offer.name)), holder)

    def put(self, offer, data, root):
        return self._store.put(attrs.evolve(offer, name=self._dated(offer.name)), data, root)

    def foresee(self, offer, root, ahead, whole):
        offer = attrs.evolve(offer, name=self._dated(offer.name))
        return self._store.foresee(offer, root, ahead, whole)

    def stat(self, name):
        return self._store.stat(self._dated(name))


@implementer(IPlugin, IFileStoreFactory)
class DatedStoreFactory:
    name = "dated"
    description = "A directory for every day: dated:DIRECTORY"
    takes = frozenset({"quota", "keepPartials"})

    def make(self, arguments):
        if not arguments:
            raise ValueError("which directory? write dated:DIRECTORY")

        def openStore(reactor, settings):
            from connpool.transfer.stores import LocalStore

            store = LocalStore(
                reactor,
                arguments,
                names=settings.names,
                quota=settings.quota,
                ttl=settings.keepPartials,
            )
            return DatedStore(store)

        return openStore


dated = DatedStoreFactory()
