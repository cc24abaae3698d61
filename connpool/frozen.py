"""
Frozen values that are made by the thousand.

Theory of operation
===================
A value of C{attrs.frozen} refuses to be written to, so its constructor has to write each
attribute past that refusal, which takes four times as long.  Here the constructor is that of
a class that can be written to, and the whole value is then given its frozen class, which has
the same attributes.  It is no different for C{attrs}, C{msgspec}, C{pickle} or a type checker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from attrs.exceptions import FrozenInstanceError

__all__ = ["frozen"]

if TYPE_CHECKING:
    from attrs import frozen
else:

    def frozen(cls: type) -> type:
        """
        Make a class of frozen values, as C{attrs.frozen} does.
        """
        writable = attrs.define(cls, unsafe_hash=True)

        def new(cls: type, *values: Any, **named: Any) -> Any:
            self = writable(*values, **named)
            self.__class__ = cls
            return self

        new.__wrapped__ = writable.__init__  # has the signature
        kept = ("__module__", "__qualname__", "__doc__", "__attrs_attrs__")
        body = {name: getattr(writable, name) for name in kept}
        body |= {"__slots__": (), "__new__": new, "__init__": object.__init__}
        body |= {"__setattr__": _refuse, "__delattr__": _refuse, "__reduce__": _reduce}
        return type(cls.__name__, (writable,), body)


def _refuse(*_: object) -> None:
    raise FrozenInstanceError


def _reduce(self: Any) -> tuple[Any, ...]:
    return type(self), attrs.astuple(self, recurse=False)
