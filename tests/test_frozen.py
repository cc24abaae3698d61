import copy
import inspect
import pickle

import attrs
import msgspec
import pytest
from attrs.exceptions import FrozenInstanceError

from connpool.frozen import frozen


@frozen
class Made:
    """
    A value.
    """

    name: str
    size: int | None = None
    secret: bytes | None = attrs.field(default=None, repr=False)

    def longer(self) -> int:
        return (self.size or 0) + 1


@attrs.frozen
class Same:
    """
    A value.
    """

    name: str
    size: int | None = None
    secret: bytes | None = attrs.field(default=None, repr=False)


def test_cannotBeWrittenTo():
    decoded = msgspec.json.decode(b'{"name": "a"}', type=Made)
    for one in (Made("a"), Made(name="a"), attrs.evolve(Made("b"), name="a"), decoded):
        assert type(one) is Made
        for name in ("name", "other"):
            with pytest.raises(FrozenInstanceError):
                setattr(one, name, "b")
            with pytest.raises(FrozenInstanceError):
                delattr(one, name)
        assert one == Made("a")
        assert not hasattr(one, "__dict__")


def test_isAsAttrsMakesIt():
    made, same = Made("a", 3, b"s"), Same("a", 3, b"s")
    assert repr(made) == repr(same).replace("Same", "Made") == "Made(name='a', size=3)"
    assert made == Made("a", 3, b"s") != Made("a", 4, b"s")
    assert made != same
    assert hash(made) == hash(Made("a", 3, b"s"))
    assert attrs.asdict(made) == attrs.asdict(same)
    assert [each.name for each in attrs.fields(Made)] == ["name", "size", "secret"]
    assert (Made.__name__, Made.__qualname__, Made.__module__) == ("Made", "Made", __name__)
    assert Made.__doc__ == Same.__doc__
    assert list(inspect.signature(Made).parameters) == ["name", "size", "secret"]
    assert made.longer() == 4
    with pytest.raises(TypeError, match="missing 1 required"):
        Made()
    with pytest.raises(TypeError, match="unexpected keyword"):
        Made("a", other=1)


def test_isCopiedAndEncoded():
    made = Made("a", 3, b"s")
    for other in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(other) is Made
        assert other == made
    assert msgspec.json.decode(msgspec.json.encode(made), type=Made) == made
    assert msgspec.json.encode(made) == msgspec.json.encode(Same("a", 3, b"s"))
