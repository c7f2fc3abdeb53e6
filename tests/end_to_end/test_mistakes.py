"""A mistake in a run file is one clear message with its place, and nothing is created."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.fleet import Fleet

GOOD = 'version: relay/v1\nname: r\nmethod: command\ncommand: ["true"]\n'


@pytest.mark.rotating(2)
@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (GOOD + "lifecicle: {max_attempts: 2}\n", 5, "lifecycle"),
        (GOOD + "lifecycle:\n  max_attempts: many\n", 6, "many"),
        (GOOD + "files: [missing.py]\n", 5, "missing.py"),
        (GOOD + "resources: {gpus: 1}\n", 5, "gpus_per_node"),
        (GOOD.replace("name: r", "name: R/../x"), 2, "name"),
        (
            "version: relay/v1\nmethod: sft\nmodel: {name_or_path: x/y}\ndata: {train: d.jsonl}\n"
            "options: {learning_rat: 1}\n",
            5,
            "learning_rate",
        ),
    ],
    ids=["unknown key", "wrong type", "missing file", "another tool's name", "bad name", "misspelt option"],
)
async def test_one_clear_message_and_nothing_created(
    fleet: Fleet, tmp_path: Path, text: str, line: int, said: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    code, out, err = await fleet.relayctl_raw("submit", str(path))
    assert code == 1, (out, err)
    assert said in err and f"{line}" in err, err
    assert "Traceback" not in err
    assert json.loads(await fleet.relayctl("runs", "-a", "-o", "json")) == {"runs": []}


async def test_all_mistakes_at_once(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD + "lifecicle: {}\nresources: {gpus: 1}\nfiles: [missing.py]\n")
    code, _, err = await fleet.relayctl_raw("submit", str(path))
    assert code == 1
    assert all(word in err for word in ("lifecicle", "gpus", "missing.py")), err


async def test_a_dead_coordinator_is_one_line(fleet: Fleet) -> None:
    code, _, err = await fleet.relayctl_raw("--coordinator", "127.0.0.1:9", "runs")
    assert code == 3 and "127.0.0.1:9" in err and len(err.strip().splitlines()) <= 3 and "Traceback" not in err
