"""
From a snapshot class to metrics: names, types and help texts.

Pure, and mechanical, so that whoever adds a field to a snapshot has added a
metric, a number on the status page and a row of the table in
C{docs/observe.rst}.  The rules are in L{connpool.interfaces.IStatsSource}.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import attrs

__all__ = ["Field", "describeFields"]

#: What a field's annotation begins with, and the shape it stands for.
_SHAPES = {
    "int": "number",
    "bool": "number",
    "float": "seconds",
    "str": "state",
    "dict": "mapping",
    "Mapping": "mapping",
    "Counter": "mapping",
    "Histogram": "histogram",
}

_TYPES: dict[str, Any] = {
    "number": (int, float),
    "seconds": (int, float),
    "state": str,
    "mapping": Mapping,
}

_HISTOGRAM = ("bounds", "counts", "total")

_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_MARKUP = re.compile(r"[A-Z]\{([^{}]*)\}")
_IVAR = re.compile(r"@ivar (\w+):\s*(.*?)(?=\n\s*@|\n\s*\n|\Z)", re.DOTALL)


@attrs.frozen
class Field:
    """
    One field of a snapshot class.

    @ivar attribute: its name in the class.
    @ivar metric: the metric's name.
    @ivar shape: C{number}, C{seconds}, C{state}, C{mapping} or C{histogram}.
    @ivar type: the metric's type: C{counter}, C{gauge} or C{histogram}.
    @ivar label: the label beside C{name}, or L{None}.
    @ivar help: one line.
    """

    attribute: str
    metric: str
    shape: str
    type: str
    label: str | None
    help: str

    def read(self, snapshot: Any) -> Any:
        """
        @return: the field's value; L{None} if there is none, or if it is not
            what its annotation says: one mistake must not hide the rest.
        """
        value = getattr(snapshot, self.attribute)
        if self.shape == "histogram":
            return value if all(hasattr(value, name) for name in _HISTOGRAM) else None
        if not isinstance(value, _TYPES[self.shape]):
            return None
        if self.shape == "mapping":
            return {str(key): count for key, count in value.items() if isinstance(count, int)}
        return value


def _snake(name: str) -> str:
    return _HUMPS.sub("_", name).lower()


def _annotation(attribute: Any) -> str:
    """
    The name an annotation begins with; modules of ours hold theirs as text.
    """
    text = attribute.type
    if get_origin(text) in {Union, UnionType}:  # some have a __name__, by the version of Python
        text = next(each for each in get_args(text) if each is not NoneType)
    if not isinstance(text, str):
        text = getattr(text, "__name__", str(text))
    return re.split(r"[\[| ]", text)[0].rpartition(".")[2]


def _helpTexts(snapshotClass: type) -> dict[str, str]:
    text = inspect.cleandoc(snapshotClass.__doc__ or "")
    return {
        name: _MARKUP.sub(r"\1", " ".join(words.split())).rstrip(".")
        for name, words in _IVAR.findall(text)
    }


@cache
def describeFields(kind: str, snapshotClass: type) -> tuple[Field, ...]:
    """
    @param kind: as L{IStatsSource.kind<connpool.interfaces.IStatsSource>}.
    @param snapshotClass: an attrs class.
    @return: its fields that are numbers, or words for a state.
    """
    gauges: frozenset[str] = getattr(snapshotClass, "GAUGES", frozenset())
    helpTexts = _helpTexts(snapshotClass)
    fields = []
    for attribute in attrs.fields(snapshotClass):
        annotation = _annotation(attribute)
        shape = _SHAPES.get(annotation)
        if shape is None:
            continue
        name = attribute.name
        metric = f"connpool_{re.sub(r'[^a-z0-9]', '_', kind.lower())}_{_snake(name)}"
        metricType = "counter"
        label = None
        if shape == "histogram":
            metricType = "histogram"
        elif shape == "state" or annotation == "bool" or name in gauges:
            metricType = "gauge"
        if shape in {"seconds", "histogram"} and not metric.endswith("_seconds"):
            metric += "_seconds"
        if metricType == "counter":
            metric += "_total"
        if shape == "state":
            label = "state"
        elif shape == "mapping":
            label = "reason"
        helpText = helpTexts.get(name) or _snake(name).replace("_", " ")
        fields.append(Field(name, metric, shape, metricType, label, helpText))
    return tuple(fields)
