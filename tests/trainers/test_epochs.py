"""S6. A run that is cut in any epoch trains the rows that it would have trained, whatever decides their order."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainers import attempts
from tests.trainers.orders import CUTS, EXACT, ORDERS, cut_everywhere


@pytest.mark.slow
@pytest.mark.rotating(1)
@pytest.mark.parametrize("order", ORDERS)
def test_a_cut_in_any_epoch_leaves_no_trace(order: str, work: Path, tmp_path: Path) -> None:
    assert cut_everywhere(order, work, tmp_path) == dict.fromkeys(CUTS, EXACT)


def test_what_cannot_be_exact_is_said_at_start_and_at_resume(run: dict[str, Any], tmp_path: Path) -> None:
    run["options"] |= {"max_steps": 2, "dataloader_num_workers": 2, "dataloader_in_order": False}
    first = attempts.make(tmp_path / "first", run | {"checkpoint": {"every": "1 steps"}})
    second = attempts.make(tmp_path / "second", run, resume=first.checkpoint(1))
    for attempt in (first, second):
        assert attempt.code == 0
        assert [said for said in attempt.messages("warning") if "not bit for bit; options.dataloader_in_order" in said]
