"""
Names of a package that are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["importLater"]


def importLater(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """
    Make the C{__getattr__} of a package.

    @param homes: name to the module of the package that has it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get
