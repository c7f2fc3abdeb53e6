"""Attempts without a coordinator, described by the run's own folder."""

import json
from pathlib import Path

import pytest

from runfile import parse_run_file
from trainers import standalone

SFT = {"version": "relay/v1", "method": "sft", "data": {"train": "rows.jsonl"}}


@pytest.mark.parametrize(("name", "resolved"), [("../models/tiny", "{}/models/tiny"), ("org/tiny", "org/tiny")])
def test_a_local_model_is_named_by_where_it_lies(tmp_path: Path, name: str, resolved: str) -> None:
    """So its result can be loaded from any folder of this machine."""
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    run = parse_run_file(SFT | {"model": {"name_or_path": name}})
    contract = standalone.prepare_attempt(run, tmp_path / "mine" / "sums.yaml", tmp_path / "runs", {})
    assert json.loads(contract.run_file.read_text())["model"]["name_or_path"] == resolved.format(tmp_path)


def test_the_first_pin_of_a_name_holds(tmp_path: Path) -> None:
    run = parse_run_file(SFT | {"model": {"name_or_path": "org/tiny"}})
    for commit in ("first", "second"):
        contract = standalone.prepare_attempt(run, tmp_path / "sums.yaml", tmp_path, {})
        contract.events.write_text(json.dumps({"type": "pin", "name": "model", "value": commit}) + "\n{torn")
    assert standalone.prepare_attempt(run, tmp_path / "sums.yaml", tmp_path, {}).pins == {"model": "first"}


def test_gpus_are_taken_from_those_in_sight() -> None:
    named = {"CUDA_VISIBLE_DEVICES": "3,5"}
    assert (
        standalone.count_visible_gpus(named),
        standalone.select_gpus(1, named),
        standalone.select_gpus(0, named),
    ) == (
        2,
        "3",
        "",
    )
    assert (standalone.count_visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}), standalone.select_gpus(2, {})) == (0, "0,1")
