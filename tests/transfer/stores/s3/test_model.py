"""
Nothing is lost, clobbered or given twice, in whatever order the calls of several receivers are
carried out, and wherever one of them dies.
"""

import pytest

from tests.transfer.stores.s3.model import World, atRandom, schedules, sent

RULES = ["rename", "replace", "refuse", "skip"]
#: One-object files and uploads of several parts.
KINDS = {"small": (False, False), "mixed": (True, False), "large": (True, True)}
MOST = {"consumes": 1, "reaps": 1, "sleeps": 1}


def runs(rule, kind, *, same=False, **values):
    """
    A function that runs two files of one name by a schedule.

    @param same: both have the same content, and come from different senders.
    """
    first, second = KINDS[kind]

    def run(choose):
        one = sent("a", b"one!", large=first, key=b"1" * 32, ifExists=rule)
        other = b"one!" if same else b"two!"
        two = sent("a", other, large=second, key=b"2" * 32, ifExists=rule)
        World([one, two], choose, **MOST | values).run()

    return run


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["small", "mixed", pytest.param("large", marks=pytest.mark.slow)])
def test_oneThingGoesWrong(rule, kind):
    assert schedules(runs(rule, kind, twice=True), 1) > 20


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_muchGoesWrong(rule, conditional):
    for kind in KINDS:
        atRandom(runs(rule, kind, conditional=conditional, twice=True), range(30))


def test_aModelThatFindsNothingIsWrong(monkeypatch):
    # without the condition of the object's PUT somebody is clobbered
    from connpool.transfer.stores.s3 import naming

    monkeypatch.setattr(naming, "ABSENT", None)
    with pytest.raises(AssertionError, match="clobbers"):
        schedules(runs("rename", "small"), 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["small", "mixed"])
def test_twoThingsGoWrong(rule, kind):
    assert schedules(runs(rule, kind, twice=kind == "small"), 2) > 500


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
