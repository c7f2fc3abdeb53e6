"""What an end means."""

from typing import Any

import pytest

from agent.causes import Cause
from agent.jobs import Exit
from agent.verdict import Order, Stop, Success, verdict

WISHED = Order(Stop.WISHED, 10.0, "cancelled")


def judged(order: Order | None = None, *, command: bool = False, stalled: str = "", **ended: Any) -> object:
    result = verdict(Exit(lease="l", **ended), order=order, command=command, stalled=stalled)
    match result:
        case Cause():
            return result.reason
        case Success():
            return "SUCCESS"
    return result


@pytest.mark.parametrize("command", [True, False])
def test_without_a_stop_only_code_zero_is_success(command: bool) -> None:
    assert judged(command=command, code=0) == "SUCCESS"
    assert judged(command=command, code=3) == "EXIT_CODE"
    assert judged(command=command, code=143) == "EXIT_CODE"
    assert judged(command=command, signal=9) == "SIGNAL"


def test_a_trainer_of_ours_says_what_it_was() -> None:
    assert judged(WISHED, code=0, stop_reason="asked") == "SUCCESS"
    assert judged(WISHED, code=143, stop_reason="asked") is Stop.WISHED
    assert judged(WISHED, code=78, stop_reason="asked") == "CONFIG_INVALID"
    assert judged(WISHED, signal=9, stop_reason="asked", kill_reason="grace over") is Stop.WISHED


def test_a_command_that_was_asked_to_stop_has_stopped() -> None:
    endings: list[dict[str, Any]] = [{"code": 0}, {"code": 1}, {"signal": 15}]
    for ended in endings:
        assert judged(WISHED, command=True, stop_reason="asked", **ended) is Stop.WISHED


def test_trust_that_ran_out_comes_before_everything() -> None:
    assert judged(WISHED, signal=9, trust_lost=True, kill_reason="trust") is Stop.TRUST_LOST


def test_a_shim_that_stopped_its_trainer_for_want_of_an_agent_was_leaving() -> None:
    assert judged(code=143, stop_reason="no agent") is Stop.LEAVING


def test_a_stall_is_a_failure_though_the_agent_killed_it() -> None:
    assert judged(signal=9, kill_reason="stalled", stalled="no step for 60 s") == "STALLED"


def test_a_lost_shim_is_infrastructure() -> None:
    assert judged(WISHED, lost=True) == "SHIM_LOST"


def test_orders_only_sharpen() -> None:
    later = Order(Stop.LEAVING, 3.0, "leaving").sharpened(WISHED)
    assert (later.cause, later.grace) == (Stop.WISHED, 3.0)
    assert Order(Stop.LEAVING, 30.0, "leaving").sharpened(later).grace == 3.0
