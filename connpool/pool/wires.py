"""
Transports over one another, such as TLS and the socket below it, as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["NO_WIRE", "Wires", "layers", "upgraded", "wireOf"]


def layers(transport: Any) -> Iterator[Any]:
    """
    Yield a transport and those below it.
    """
    while transport is not None:
        yield transport
        transport = getattr(transport, "transport", None)


def wireOf(transport: Any) -> Any:
    """
    Return an object that says whether a connection is C{disconnecting} and which
    C{producer} writes to it: the transport itself where it is the only one and says so,
    since that is asked in every lease.
    """
    wires = tuple(each for each in layers(transport) if hasattr(each, "disconnecting"))
    if len(wires) == 1 and hasattr(wires[0], "producer"):
        return wires[0]
    return Wires(wires)


def upgraded(wire: Any) -> Any:
    """
    Return the same for a transport on which C{startTLS} was called: TLS has become its
    protocol.
    """
    tls = getattr(wire, "protocol", None)
    return Wires((tls, wire)) if hasattr(tls, "disconnecting") else wire


class Wires:
    """
    Several transports: the peer's goodbye in TLS shows on the socket's only.
    """

    __slots__ = ("_wires",)

    def __init__(self, wires: tuple[Any, ...]) -> None:
        self._wires = wires

    @property
    def disconnecting(self) -> bool:
        """
        Tell whether one of them is about to close.
        """
        return any(each.disconnecting for each in self._wires)

    @property
    def producer(self) -> Any:
        """
        Return what writes to one of them, or L{None}.
        """
        found = (getattr(each, "producer", None) for each in self._wires)
        return next((each for each in found if each is not None), None)


#: Of a connection that has no transport yet.
NO_WIRE = Wires(())
