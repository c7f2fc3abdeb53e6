"""The checker finds every kind of broken promise, and names it correctly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.history.record import Execution, Signal, Step
from tests.history.sound import FIRST, SECOND, Made, sound

PLANTED: dict[str, tuple[str, Callable[[Made], object]]] = {}


def planted(name: str) -> Callable[[Callable[[Made], object]], Callable[[Made], object]]:
    """Names the property that the fault breaks."""

    def add(plant: Callable[[Made], object]) -> Callable[[Made], object]:
        PLANTED[plant.__name__] = (name, plant)
        return plant

    return add


@planted("S1")
def a_reused_lease_id(made: Made) -> None:
    made.row("run_events", kind="granted", lease_id=SECOND)["lease_id"] = FIRST


@planted("S1")
def a_lease_made_twice(made: Made) -> None:
    made.tables["leases"].append(dict(made.row("leases", id=FIRST)))


@planted("S1")
def a_second_holder(made: Made) -> None:
    for lease in (FIRST, SECOND):
        made.row("leases", id=lease).update(state="held", end_time=None, outcome=None)


@planted("S1")
def a_grant_before_the_end(made: Made) -> None:
    made.row("leases", id=SECOND)["grant_time"] = 6.5


@planted("S1")
def an_attempt_number_given_twice(made: Made) -> None:
    made.row("leases", id=SECOND)["attempt"] = 1


@planted("S2")
def a_write_after_the_end(made: Made) -> None:
    made.row("run_events", kind="copied", lease_id=SECOND)["lease_id"] = FIRST


@planted("S2")
def a_checkpoint_after_the_end(made: Made) -> None:
    made.row("checkpoints", id="1-2")["create_time"] = 7.5


@planted("S2")
def a_log_after_the_end(made: Made) -> None:
    made.row("log_chunks", lease_id=FIRST)["time"] = 7.5


@planted("S2")
def points_after_the_end(made: Made) -> None:
    made.row("metric_chunks", lease_id=FIRST)["times"][-1] = 7.5


@planted("S2")
def a_foreign_write(made: Made) -> None:
    made.row("metric_chunks", lease_id=SECOND)["run_id"] = "s"


@planted("S2")
def a_write_of_a_node_without_a_place(made: Made) -> None:
    made.row("cursors", lease_id=SECOND, source="stdout")["node"] = 3


@planted("S3")
def a_second_execution_under_stop(made: Made) -> None:
    made.executions[0] = replace(made.executions[0], ended=9.5)


@planted("S3")
def one_lease_executed_twice(made: Made) -> None:
    made.executions.append(replace(made.executions[1], host="c"))


@planted("S4")
def a_copy_under_a_common_name(made: Made) -> None:
    made.row("checkpoint_copies", checkpoint_id="2-6")["uri"] = "s3://bucket/r/step_6"


@planted("S4")
def an_overwritten_copy(made: Made) -> None:
    for name in ("2-6", "2-8"):
        made.row("checkpoint_copies", checkpoint_id=name)["uri"] = f"s3://bucket/{SECOND}/latest"


@planted("S5")
def an_unfenced_head(made: Made) -> None:
    made.row("runs", id="r")["head_id"] = "1-4"


@planted("S5")
def a_head_of_an_ended_lease(made: Made) -> None:
    made.row("run_events", kind="checkpoint", lease_id=SECOND)["details"].update(checkpoint="1-4")


@planted("S5")
def a_head_that_is_not_complete(made: Made) -> None:
    made.tables["checkpoint_parts"].remove(made.row("checkpoint_parts", checkpoint_id="2-6"))


@planted("S5")
def a_head_that_went_back(made: Made) -> None:
    made.tell("checkpoint", FIRST, "running", checkpoint="1-2", step=2)
    entries = made.tables["run_events"]
    late = entries.pop()
    late["sequence"] = 7.5
    entries.append(late)


@planted("S5")
def a_head_before_its_events(made: Made) -> None:
    made.row("cursors", lease_id=SECOND, source="events")["offset_bytes"] -= 1


@planted("S6")
def an_attempt_that_did_not_say_from_where(made: Made) -> None:
    made.tables["run_events"].remove(made.row("run_events", kind="started", lease_id=SECOND))


@planted("S6")
def a_resume_from_an_older_one(made: Made) -> None:
    made.row("run_events", kind="started", lease_id=SECOND)["details"].update(checkpoint="1-2", step=2)


@planted("S6")
def points_left_on_the_curve(made: Made) -> None:
    made.row("leases", id=FIRST)["kept_until_step"] = None


@planted("S6")
def a_head_off_the_curve(made: Made) -> None:
    made.row("checkpoints", id="2-8")["superseded"] = True


@planted("S7")
def a_loss(made: Made) -> None:
    chunk = made.row("metric_chunks", lease_id=SECOND)
    del chunk["steps"][0], chunk["points"][0]


@planted("S7")
def a_double(made: Made) -> None:
    made.tables["metric_chunks"].append({**made.row("metric_chunks", lease_id=SECOND), "id": 9})


@planted("S7")
def a_loss_that_the_cursor_hides(made: Made) -> None:
    """Nothing of the host is left to compare with, only what the trainer said that it did."""
    made.files.clear()
    a_loss(made)


@planted("S7")
def a_point_that_nobody_made(made: Made) -> None:
    made.steps.remove(Step("r", SECOND, 7, 1 / 7))


@planted("S7")
def a_wrong_value(made: Made) -> None:
    made.row("metric_chunks", lease_id=SECOND)["points"][2] = 0.5


@planted("S7")
def a_cursor_beyond_the_file(made: Made) -> None:
    made.files[SECOND, 0, "events"] = made.files[SECOND, 0, "events"][:-10]


@planted("S7")
def a_hole_in_a_log(made: Made) -> None:
    made.tables["log_chunks"].remove(made.row("log_chunks", lease_id=SECOND, offset_bytes=0))


@planted("S7")
def a_log_that_says_something_else(made: Made) -> None:
    made.row("log_chunks", lease_id=SECOND, offset_bytes=6)["data"] = b"worle\n"


@planted("S8")
def a_gap_in_the_history(made: Made) -> None:
    made.tables["run_events"].remove(made.row("run_events", kind="copied", lease_id=SECOND))


@planted("S8")
def an_illegal_move(made: Made) -> None:
    made.row("run_events", kind="granted", lease_id=SECOND)["state"] = "succeeded"


@planted("S8")
def a_success_that_nobody_reported(made: Made) -> None:
    made.row("leases", id=SECOND)["completion"] = None


@planted("S8")
def a_run_that_runs_without_a_lease(made: Made) -> None:
    made.row("runs", id="r").update(state="running", end_time=None)


@planted("S8")
def a_cancellation_that_nobody_wished(made: Made) -> None:
    made.row("runs", id="r")["state"] = "cancelled"


@planted("S9")
def a_slot_with_two_leases(made: Made) -> None:
    made.row("places", lease_id=SECOND).update(agent="a")
    made.row("places", lease_id=FIRST).update(end_time=9.0)


@planted("S8")
def a_lease_that_nobody_had(made: Made) -> None:
    made.tables["places"].remove(made.row("places", lease_id=FIRST))


@planted("S8")
def a_host_had_what_was_trained_elsewhere(made: Made) -> None:
    made.row("run_events", kind="granted", lease_id=FIRST)["details"]["imported"] = True


@planted("S5")
def a_head_of_elsewhere_without_its_part(made: Made) -> None:
    trained_elsewhere(made)
    made.tables["checkpoint_parts"].remove(made.row("checkpoint_parts", checkpoint_id="1-4"))


@planted("S9")
def a_slot_taken_by_nobody(made: Made) -> None:
    made.add("taken_slots", agent="a", slot=0, lease_id=FIRST, node=0)


@planted("S9")
def an_agent_that_holds_two_for_a_slot(made: Made) -> None:
    held = made.row("agents", name="b")["held"]
    held.append({**held[0], "lease": FIRST})


@planted("S9")
def two_trainers_on_a_slot(made: Made) -> None:
    made.executions.append(Execution("s", "3" * 32, "continue", "b", 10.0, 11.0, slots=(0,)))


@planted("S9")
def a_submission_that_was_forgotten(made: Made) -> None:
    made.tables["requests"].clear()


@planted("S9")
def a_run_created_twice(made: Made) -> None:
    made.tell("created", None, "succeeded")


@planted("S10")
def a_stop_passed_on_twice(made: Made) -> None:
    made.signals.append(Signal(SECOND, "SIGTERM"))


def test_a_sound_history_passes() -> None:
    assert not sound().broken()


def trained_elsewhere(made: Made) -> None:
    """Make the first attempt an import: of no host, with no files and no witness of its steps."""
    made.row("run_events", kind="granted", lease_id=FIRST)["details"]["imported"] = True
    made.tables["places"].remove(made.row("places", lease_id=FIRST))
    for table in ("cursors", "log_chunks"):
        made.tables[table] = [row for row in made.tables[table] if row["lease_id"] != FIRST]
    made.files = {key: data for key, data in made.files.items() if key[0] != FIRST}
    made.steps = [step for step in made.steps if step.lease != FIRST]
    made.executions = made.executions[1:]


def test_what_was_trained_elsewhere_has_no_host_and_is_sound() -> None:
    made = sound()
    trained_elsewhere(made)
    assert not made.broken()


def test_a_trainer_whose_host_was_frozen_is_excused() -> None:
    """S3 assumes that the shim is scheduled."""
    made = sound()
    made.executions[0] = replace(made.executions[0], ended=9.5, excused=True)
    assert not made.broken()


def test_a_newer_checkpoint_may_be_skipped_with_a_reason() -> None:
    """S6."""
    made = sound()
    a_resume_from_an_older_one(made)
    made.row("run_events", kind="started", lease_id=SECOND)["details"]["skipped"] = [{"checkpoint": "1-4"}]
    assert not [found for found in made.broken() if "newest" in found.text]


@pytest.mark.parametrize("fault", PLANTED)
def test_what_is_planted_is_found(fault: str) -> None:
    """S1 to S10."""
    name, plant = PLANTED[fault]
    made = sound()
    plant(made)
    found = made.broken()
    assert name in {violation.property for violation in found}, list(map(str, found))
