"""What stays of a run's checkpoints: the rules one by one, and what holds for any run."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.retention import CheckpointFacts, RetentionPolicy, decide

DAY = 86400.0
NOW = 100 * DAY


def make_facts(step: int, attempt: int = 1, *, loss: float | None = None, **more: object) -> CheckpointFacts[str]:
    """A checkpoint as it stays behind: complete, uploaded, one minute a step ago."""
    values = {
        "id": f"{attempt}-{step}", "attempt": attempt, "step": step, "size": 10, "time": NOW - 60.0 * (1000 - step),
        "metrics": {} if loss is None else {"eval_loss": loss}, "beyond": True,
    }  # fmt: skip
    return CheckpointFacts(**{**values, **more})  # type: ignore[arg-type]


def curve(*steps: int) -> list[CheckpointFacts[str]]:
    """A sound run: the last is head."""
    return [make_facts(step, head=step == steps[-1]) for step in steps]


def staying(keep: RetentionPolicy, checkpoints: list[CheckpointFacts[str]]) -> dict[int, tuple[str, ...]]:
    """The reasons by step."""
    steps = {each.id: each.step for each in checkpoints}
    return {steps[found]: reasons for found, reasons in decide(keep, checkpoints, NOW).kept.items()}


def test_the_last_stay() -> None:
    assert staying(RetentionPolicy(last=2), curve(10, 20, 30, 40)) == {
        30: ("one of the last 2",),
        40: ("head", "one of the last 2"),
    }
    assert staying(RetentionPolicy(last=1), curve(10, 20)) == {20: ("head", "the last")}


@pytest.mark.parametrize(("least", "stays"), [(True, 10), (False, 30)])
def test_the_best_stay(least: bool, stays: int) -> None:
    run = [
        make_facts(10, loss=0.1),
        make_facts(20, loss=0.5),
        make_facts(30, loss=0.9),
        make_facts(40),
        make_facts(50, loss=float("nan"), head=True),
    ]
    found = staying(RetentionPolicy(last=1, best=1, metric="eval_loss", least=least), run)
    assert found == {stays: ("best by eval_loss",), 50: ("head", "the last")}


def test_what_is_not_evaluated_yet_stays_while_its_attempt_or_the_next_may_evaluate_it() -> None:
    due = [make_facts(10, evaluation_due=True), make_facts(20, evaluation_due=True, superseded=True)]
    keep = RetentionPolicy(last=1)
    assert sorted(staying(keep, [*due, make_facts(30, head=True)])) == [30]
    for running in ({"current": True}, {"resumed": True}):
        found = staying(keep, [*(replace(each, **running) for each in due), make_facts(30, head=True)])  # type: ignore[arg-type]
        assert "not evaluated yet" in found[10] and "not evaluated yet" not in found.get(20, ())


def test_of_equally_good_ones_the_newer_stay() -> None:
    run = [make_facts(step, loss=0.5, head=step == 40) for step in (10, 20, 30, 40)]
    keep = RetentionPolicy(last=1, best=2, metric="eval_loss")
    assert sorted(staying(keep, run)) == [30, 40]
    assert staying(keep, run)[30] == ("one of the best 2 by eval_loss",)


def test_the_first_of_every_so_many_steps_stays() -> None:
    run = curve(90, 110, 150, 200, 290, 310, 999)
    assert staying(RetentionPolicy(last=1, every_steps=100), run) == {
        110: ("every 100 steps",),
        200: ("every 100 steps",),
        310: ("every 100 steps",),
        999: ("head", "the last", "every 100 steps"),
    }


def test_the_first_of_every_stretch_of_time_stays() -> None:
    run = [replace(each, time=each.step * 3600.0) for each in curve(1, 3, 4, 5, 9)]
    assert sorted(staying(RetentionPolicy(last=1, every_seconds=4 * 3600.0), run)) == [1, 4, 9]


def test_what_is_too_old_goes_unless_it_is_needed() -> None:
    run = [replace(each, time=NOW - 10 * DAY) for each in curve(10, 20, 30)]
    run[0] = replace(run[0], pinned=True)
    decision = decide(RetentionPolicy(last=3, max_age=7 * DAY), run, NOW)
    assert decision.deleted == {"1-20": "older than 7d"}


def test_the_oldest_go_until_the_rest_fits_and_the_best_after_all_others() -> None:
    run = [make_facts(10, loss=0.1), make_facts(20), make_facts(30), make_facts(40), make_facts(50, head=True)]
    decision = decide(RetentionPolicy(last=4, best=1, metric="eval_loss", max_total=25), run, NOW)
    assert decision.deleted == dict.fromkeys(("1-20", "1-30", "1-40"), "over the limit of 25 bytes in all")
    assert (
        "1-10"
        not in decide(RetentionPolicy(last=1, best=1, metric="eval_loss", max_total=1), [run[0], run[-1]], NOW).kept
    )


def test_what_is_off_the_curve_or_never_became_whole_goes() -> None:
    run = [
        make_facts(10),
        make_facts(20, superseded=True),
        make_facts(15, complete=False, beyond=False),
        make_facts(15, 2, head=True),
    ]
    assert decide(RetentionPolicy(last=9), run, NOW).deleted == {"1-20": "superseded", "1-15": "never completed"}


def test_what_only_its_host_has_protects_the_newest_that_outlives_it() -> None:
    run = [
        make_facts(10),
        make_facts(20),
        make_facts(30, beyond=False, current=True),
        make_facts(40, beyond=False, current=True, head=True),
    ]
    assert staying(RetentionPolicy(last=1), run) == {
        20: ("the newest with a copy beyond its host",),
        30: ("being uploaded",),
        40: ("head", "being uploaded", "the last"),
    }
    uploaded = [*run[:3], replace(run[3], beyond=True)]
    assert sorted(staying(RetentionPolicy(last=1), uploaded)) == [40]


def test_parts_that_are_on_their_way_are_waited_for() -> None:
    run = [make_facts(10, head=True), make_facts(20, complete=False, beyond=False, current=True)]
    assert staying(RetentionPolicy(last=1), run)[20] == ("not complete yet",)


@pytest.mark.parametrize("keep", [{"last": 0}, {"best": 1}, {"best": -1}])
def test_a_rule_that_would_keep_nothing_is_refused(keep: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RetentionPolicy(**keep)  # type: ignore[arg-type]


keeps = st.builds(
    RetentionPolicy,
    last=st.integers(1, 4),
    best=st.integers(0, 3),
    metric=st.just("loss"),
    least=st.booleans(),
    every_steps=st.none() | st.integers(1, 30),
    every_seconds=st.none() | st.floats(1, 1e5),
    max_age=st.none() | st.floats(1, 1e6),
    max_total=st.none() | st.integers(1, 400),
)


@st.composite
def runs(draw: Callable[..., object]) -> list[CheckpointFacts[str]]:
    """Any run that a registry could have."""
    rows = draw(
        st.lists(
            st.builds(
                CheckpointFacts,
                id=st.uuids().map(str),
                attempt=st.integers(1, 4),
                step=st.integers(0, 100),
                size=st.integers(0, 100),
                time=st.floats(NOW - 1e6, NOW),
                metrics=st.dictionaries(st.just("loss"), st.floats(allow_nan=True)),
                complete=st.booleans(),
                superseded=st.booleans(),
                pinned=st.booleans(),
                resumed=st.booleans(),
                current=st.booleans(),
                beyond=st.booleans(),
            ),
            max_size=20,
            unique_by=lambda each: each.order,
        )
    )
    assert isinstance(rows, list)
    fit = [each for each in rows if each.complete and not each.superseded]
    head = max(fit, key=lambda each: each.order, default=None)
    return [replace(each, head=each is head) for each in rows]


@given(keeps, runs())
def test_nothing_that_is_needed_ever_goes(keep: RetentionPolicy, run: list[CheckpointFacts[str]]) -> None:
    decision = decide(keep, run, NOW)
    assert {*decision.kept, *decision.deleted} == {each.id for each in run}
    assert not decision.kept.keys() & decision.deleted.keys()
    assert all(decision.kept.values()) and all(decision.deleted.values())
    outliving = [each for each in run if each.complete and not each.superseded and each.beyond]
    for each in run:
        on_its_way = each.current and not each.superseded and not each.complete
        if each.head or each.pinned or each.resumed or on_its_way:
            assert each.id in decision.kept
    if outliving:
        assert max(outliving, key=lambda each: each.order).id in decision.kept


@given(keeps, runs())
def test_deciding_again_takes_nothing_more(keep: RetentionPolicy, run: list[CheckpointFacts[str]]) -> None:
    """So it may be done as often as anything happens."""
    first = decide(keep, run, NOW)
    left = [each for each in run if each.id in first.kept]
    assert decide(keep, left, NOW).kept.keys() == first.kept.keys()


@given(keeps, runs())
def test_limits_only_ever_take_away(keep: RetentionPolicy, run: list[CheckpointFacts[str]]) -> None:
    free = decide(replace(keep, max_age=None, max_total=None), run, NOW)
    assert decide(keep, run, NOW).kept.keys() <= free.kept.keys()
