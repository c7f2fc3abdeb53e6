"""`relayctl submit` and what follows: a run from its submission to its result, against a real deployment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.relayctl.deployed import relayctl, run_file

pytestmark = pytest.mark.usefixtures("environment")


def test_a_run_from_submission_to_its_result(tmp_path: Path) -> None:
    file = run_file(tmp_path, "first")
    rehearsal = relayctl("submit", file, "--dry-run").stdout
    assert "1 file" in rehearsal and "can run now on local-1" in rehearsal and "submitted" not in rehearsal
    relayctl("show", "first", code=4)
    watched = relayctl("submit", file, "--watch").stdout
    assert "submitted first; watch it with: relayctl watch first" in watched
    assert "step 10 is saved" in watched and "first succeeded; 1 file" in watched
    assert relayctl("pull", "first", str(tmp_path / "out")).stdout.startswith("1 file, 4 B, verified")
    assert (tmp_path / "out" / "result.txt").read_text() == "done"
    [curve] = json.loads(relayctl("metrics", "first", "-o", "json").stdout)["metrics"]
    assert curve["steps"] == list(range(1, 13)) and curve["values"] == [1 / step for step in range(1, 13)]
    assert "train_loss" in relayctl("metrics", "first", "--plot").stdout
    relayctl("metrics", "first", "--png", str(tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "it has train_loss" in relayctl("metrics", "first", "loss", code=2).stderr
    assert relayctl("samples", "first").stdout == "step 10  rollout  exact 0.25\n    2 +\n    2\n  → 10\n"
    assert [each["step"] for each in json.loads(relayctl("samples", "first", "-ao", "json").stdout)["samples"]] == [
        5,
        10,
    ]
    assert relayctl("samples", "first", "--step", "5", "--kind", "rollout").stdout.count("→") == 1
    assert "no such samples" in relayctl("samples", "first", "--step", "6").stderr
    assert "prompt, rollout" in relayctl("samples", "first", "--kind", "joke", code=4).stderr
    steps = [
        point["step"] for point in json.loads(relayctl("checkpoints", "first", "-o", "json").stdout)["checkpoints"]
    ]
    assert steps == [5, 10]
    assert "head, one of the last 3" in relayctl("checkpoints", "first").stdout
    assert relayctl("checkpoints", "pin", "first@5", "--reason", "good").stdout == "step 5 of first is kept\n"
    assert "pinned: good" in relayctl("checkpoints", "first").stdout
    assert json.loads(relayctl("checkpoints", "unpin", "first@5", "-o", "json").stdout)["pinned"] is False
    assert "it has 5, 10" in relayctl("checkpoints", "pin", "first@7", code=4).stderr
    assert "write RUN@STEP" in relayctl("checkpoints", "pin", "first", code=2).stderr
    assert "did you mean: relayctl checkpoints pin first@5" in relayctl("checkpoints", "pni", "first@5", code=2).stderr
    assert relayctl("logs", "first").stdout == "begins at 0\n"
    assert json.loads(relayctl("logs", "first", "-o", "jsonl").stdout)["text"] == "begins at 0"
    assert relayctl("wait", "first", "--timeout", "20s").stdout.startswith("first succeeded")
    assert yaml.safe_load(relayctl("show", "first", "--spec").stdout)["env"]["STEPS"] == "12"


def test_submitting_the_same_again_starts_nothing_and_something_else_is_refused(tmp_path: Path) -> None:
    file = run_file(tmp_path, "again")
    relayctl("submit", file, "-q")
    relayctl("wait", "again")
    said = relayctl("submit", file).stdout
    assert "again had been submitted already and it succeeded; nothing new was started; to run it again: --name" in said
    refused = relayctl("submit", file, "--set", "env.STEPS=13", code=4)
    assert "again" in refused.stderr and "--name" in refused.stderr
    assert relayctl("submit", file, "--name", "again-2", "-q").stdout == "again-2\n"
    relayctl("wait", "again-2")


def test_what_is_wrong_is_said_and_nothing_is_created(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("version: relay/v1\nname: never\nmethod: command\ncommand: [a]\ngpus: 1\nfiles: [none.py]\n")
    said = relayctl("submit", str(file), code=1).stderr
    assert "2 mistakes" in said and "line 5" in said and "resources.gpus_per_node" in said and "none.py" in said
    assert "relayctl runs -a" in relayctl("show", "never", code=4).stderr
    relayctl("pull", "never", str(tmp_path), code=4)
