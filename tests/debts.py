"""
The present exceptions of tests/test_architecture.py; they only become fewer.
"""

LEGS = {
    "connpool.transfer.identities",
    "connpool.transfer.send.streams",
}
CIRCLES = {
    frozenset({"connpool.pool.core", "connpool.pool.refusals"}),
    frozenset(
        {
            "connpool.pool.lease",
            "connpool.pool.observation",
            "connpool.pool.pool",
            "connpool.pool.shell",
        }
    ),
    frozenset(
        {
            "connpool.transfer.receive.greeting",
            "connpool.transfer.receive.registry",
            "connpool.transfer.receive.session",
        }
    ),
    frozenset({"connpool.transfer.receive.incoming", "connpool.transfer.receive.reception"}),
    frozenset({"connpool.transfer.send.streams", "connpool.transfer.send.transmission"}),
    frozenset(
        {
            "connpool.transfer.stores.admission",
            "connpool.transfer.stores.local",
            "connpool.transfer.stores.partial",
        }
    ),
    frozenset({"connpool.transfer.stores.caseindex", "connpool.transfer.stores.directories"}),
    frozenset({"connpool.transfer.stores.copies", "connpool.transfer.stores.publish"}),
}
FOREIGN = {
    "core._acquiresThen",
    "core._maxUses",
    "held.lease._connection",
    "lease._connection",
    "lease._pool",
    "lease._released",
    "pool._acquire",
    "pool._core",
    "pool._seconds",
    "self._pool(key)._acquire",
    "self._pool(key)._run",
    "self._pool._core",
    "self._pool._detach",
    "self._pool._giveBack",
    "self._pool._later",
    "self._pool._leave",
    "self._pool._reclaim",
    "self._pool._throwAway",
    "self._reception._left",
    "self._reception._published",
    "self._secured._wrappedEndpoint",
    "self._secured._wrapperFactory",
    "self.pool._core",
    "self.pool._seconds",
    "world.pool._core",
}
DOCSTRINGS = {
    "connpool.interfaces": 2,
    "connpool.pool.clock": 1,
    "connpool.pool.connection": 3,
    "connpool.pool.core": 2,
    "connpool.pool.destination": 2,
    "connpool.pool.endpoint": 2,
    "connpool.pool.inventory": 1,
    "connpool.pool.lease": 1,
    "connpool.pool.observation": 1,
    "connpool.pool.refusals": 1,
    "connpool.pool.sizing": 2,
    "connpool.pool.states": 3,
    "connpool.pool.stats": 1,
    "connpool.services.poolrelay": 1,
    "connpool.testing.interleavings": 1,
    "connpool.transfer.identities": 2,
    "connpool.transfer.names": 1,
    "connpool.transfer.receive.blockmap": 1,
    "connpool.transfer.receive.quotas": 2,
    "connpool.transfer.receive.registry": 1,
    "connpool.transfer.receive.upload": 1,
    "connpool.transfer.send.extents": 2,
    "connpool.transfer.stores.admission": 1,
    "connpool.transfer.stores.receiptlog": 1,
    "connpool.transfer.wire.safety": 2,
}
