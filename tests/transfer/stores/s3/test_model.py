"""
Nothing is lost, clobbered or given twice, in whatever order the calls of several receivers are
carried out, and wherever one of them dies.
"""

import pytest

from connpool.transfer.stores.s3 import naming
from tests.transfer.stores.s3.model import World, atRandom, explore, sent, token

RULES = ["rename", "replace", "refuse", "skip"]
#: The parts of both files; 0 for one object.
KINDS = {"small": (0, 0), "mixed": (2, 0), "large": (1, 1)}
MOST = {"consumes": 1, "reaps": 1, "sleeps": 1}


def runs(rule, kind, *, same=False, **values):
    """
    A function that runs two files of one name by a schedule.

    @param same: both have the same content, and come from different senders.
    """
    first, second = KINDS[kind]

    def run(choose):
        one = sent("a", b"one!", parts=first, key=b"1" * 32, ifExists=rule)
        other = b"one!" if same else b"two!"
        two = sent("a", other, parts=second, key=b"2" * 32, ifExists=rule)
        World([one, two], choose, **MOST | values).run()

    return run


@pytest.fixture(autouse=True)
def sameTokens(monkeypatch):
    monkeypatch.setattr("secrets.token_hex", token)
    # as many as files at most; each is a call of its own here
    monkeypatch.setattr("connpool.transfer.stores.s3.claims.VARIANTS_AT_ONCE", 3)


@pytest.mark.parametrize("rule", RULES)
def test_everyOrder(rule):
    for kind in ("small", "mixed"):
        assert explore(runs(rule, kind), 0) > 20


@pytest.mark.parametrize("rule", RULES)
def test_everyOrderWithAnAccident(rule):
    assert explore(runs(rule, "small"), 1) > 500


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_muchGoesWrong(rule, conditional):
    for kind in KINDS:
        atRandom(runs(rule, kind, conditional=conditional, twice=True), range(30))


def test_aModelThatFindsNothingIsWrong(monkeypatch):
    # without the condition of the object's PUT somebody is clobbered
    monkeypatch.setattr(naming, "ABSENT", None)
    with pytest.raises(AssertionError, match="clobbers"):
        explore(runs("rename", "small"), 0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("kind", "twice", "accidents", "switches"),
    [("small", True, 1, 2), ("mixed", False, 1, 1), ("large", False, 1, 1)],
)
def test_everyOrderWithAccidents(rule, kind, twice, accidents, switches):
    assert explore(runs(rule, kind, twice=twice), accidents, switches) > 1000


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_veryMuchGoesWrong(rule, conditional):
    for kind in KINDS:
        atRandom(
            runs(rule, kind, conditional=conditional, twice=True, deaths=3, lates=3, consumes=2),
            range(3000),
        )
