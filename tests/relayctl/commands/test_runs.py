"""`relayctl runs`: the table of runs, and lists for users and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from relay.v1 import runs_pb2 as pb
from relayctl.commands.runs import format_runs_table
from tests.relayctl.deployed import relayctl, run_file
from tests.relayctl.messages import NOW, a_run, stamp


def test_runs_have_the_reason_in_the_cell() -> None:
    queued = pb.Run(
        name="runs/big",
        state=pb.Run.QUEUED,
        create_time=stamp(seconds=5),
        reason="needs 2 GPUs ≥ 40 GiB on one host; best free host has 1",
    )
    failed = pb.Run(
        name="runs/bad",
        state=pb.Run.FAILED,
        create_time=stamp(hours=2),
        attempts=3,
        reason="CUDA_OOM at step 120 (attempt 2 of 3)",
    )
    assert format_runs_table([a_run(), queued, failed], NOW).splitlines() == [
        "NAME  PROGRESS     HOST    TRY  AGE        STATE",
        "sums  120/400 30%  host-a  1    3 min      running",
        "big   -            -       -    5 s        queued: needs 2 GPUs ≥ 40 GiB on one host; best free host has 1",
        "bad   -            -       3    2 h 0 min  failed: CUDA_OOM at step 120 (attempt 2 of 3)",
    ]


def test_wide_adds_and_control_characters_go() -> None:
    text = format_runs_table([a_run(labels={"team": "nlp\x1b[2J"})], NOW, wide=True)
    assert "team=nlp" in text and "train_loss 0.4512  zeta 1" in text and "\x1b" not in text


@pytest.mark.usefixtures("environment")
def test_lists_for_people_and_for_programs(tmp_path: Path) -> None:
    relayctl("submit", run_file(tmp_path, "listed"), "-q")
    relayctl("wait", "listed")
    assert "listed" in relayctl("runs", "-l", "kind=test", "--since", "1h").stdout
    assert relayctl("runs", "-q", "-n", "1").stdout == "listed\n"
    assert json.loads(relayctl("runs", "-l", "kind=none", "-o", "json").stdout) == {"runs": []}
    assert relayctl("runs", "-l", "kind=none", "-q").stdout == ""
    assert relayctl("runs", "-l", "kind=none").stdout == "no runs match\n"
    assert "known: queued, running" in relayctl("runs", "--state", "done", code=2).stderr
    assert "key=value" in relayctl("runs", "-l", "kind", code=2).stderr
    assert "must have a unit" in relayctl("runs", "--since", "5", code=2).stderr
    assert relayctl("agents", "-q").stdout == "local-1\n"
    assert relayctl("checkpoints", "listed", "-o", "jsonl").stdout.count("\n") == 2
    assert relayctl("agents", "-l", "kind=none", "-q").stdout == ""
    assert relayctl("agents", "-l", "kind=none").stdout == "no agents match\n"
    assert yaml.safe_load(relayctl("agents", "-o", "yaml").stdout)["agents"][0]["state"] == "ready"
