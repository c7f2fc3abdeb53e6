"""What is recognised of trainings without Relay, what is skipped and why, and what is refused."""

from __future__ import annotations

import json
import math
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from relayctl.local import external_checkpoints, external_metrics
from relayctl.local.external_checkpoints import ExternalTraining, NotImportable
from storage.manifest import MANIFEST_FILE, describe_folder
from tests.relayctl.older import Lines, hf_checkpoint, point, run_folder


def steps(found: ExternalTraining) -> list[int]:
    return [each.step for each in found.checkpoints]


def values(curve: external_metrics.ExternalCurve) -> dict[int, dict[str, object]]:
    events = [json.loads(line) for line in curve.lines]
    return {event["step"]: event["values"] for event in events if event["type"] == "metric"}


def refusal(root: Path) -> str:
    with pytest.raises(NotImportable) as refused:
        external_metrics.read_curve(root, external_checkpoints.find_checkpoints(root).checkpoints)
    said = str(refused.value)
    assert "\n" not in said
    return said


def test_the_folder_of_a_commanders_worker(tmp_path: Path) -> None:
    """Row A6."""
    root = run_folder(tmp_path / "old", [1, 2, 10])
    found = external_checkpoints.find_checkpoints(root)
    assert (steps(found), found.skipped) == ([1, 2, 10], [])
    assert {path: file.name for path, file in found.head.files.items()} == {"step": "step"}
    assert (found.head.added, found.head.log_history) == ({}, None)
    assert external_checkpoints.read_status(root) == {"status": "COMPLETED", "latest_ckpt": "step_00000010"}
    assert steps(external_checkpoints.find_checkpoints(root / "ckpt")) == [1, 2, 10]
    assert steps(external_checkpoints.find_checkpoints(root, last=2)) == [2, 10]


def test_checkpoints_of_the_hugging_face_trainer_are_given_what_ours_ask_for(tmp_path: Path) -> None:
    """Row D3."""
    for step in (100, 20):
        hf_checkpoint(tmp_path, step)
    (tmp_path / "tmp-checkpoint-120").mkdir()
    (tmp_path / ".tmp-checkpoint-130").mkdir()
    (tmp_path / "runs").mkdir()
    found = external_checkpoints.find_checkpoints(tmp_path)
    assert (steps(found), found.skipped, found.head.total_steps) == ([20, 100], [], 100)
    assert sorted(found.head.files) == ["model.safetensors", "optimizer.pt", "trainer_state.json"]  # without the pickle
    sealed = json.loads(found.head.added["relay_state.json"])
    assert (sealed["format"], sealed["step"], sealed["world"], sealed["identity"]) == (1, 100, None, None)
    assert sealed["files"] == {path: file.stat().st_size for path, file in found.head.files.items()}

    (tmp_path / "checkpoint-100" / "relay_state.json").write_text(json.dumps({"files": sealed["files"]}))
    assert external_checkpoints.find_checkpoints(tmp_path).head.added == {}


def test_what_is_half_written_is_skipped_and_named(tmp_path: Path) -> None:
    hf_checkpoint(tmp_path, 1)
    (hf_checkpoint(tmp_path, 2) / "model.safetensors").unlink()
    (hf_checkpoint(tmp_path, 3) / "trainer_state.json").write_text('{"global_st')
    (tmp_path / "checkpoint-4").mkdir()
    hf_checkpoint(tmp_path, 5).joinpath("model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )
    hf_checkpoint(tmp_path, 6, global_step=7)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-8").write_text("a file")
    hf_checkpoint(tmp_path, 9).rename(tmp_path / "checkpoint-09")
    hf_checkpoint(tmp_path, 9)
    (hf_checkpoint(tmp_path, 10) / "relay_state.json").write_text('{"files": {"model.safetensors": 5}}')
    sealed = hf_checkpoint(tmp_path, 11)
    (sealed / MANIFEST_FILE).write_bytes(describe_folder(sealed).to_bytes())
    (sealed / "optimizer.pt").unlink()
    found = external_checkpoints.find_checkpoints(tmp_path)
    assert steps(found) == [1, 9]
    assert dict(found.skipped) == {
        "checkpoint-2": "no weights are in it (*.safetensors, pytorch_model*.bin, adapter_model.*)",
        "checkpoint-3": "trainer_state.json is missing or cannot be read",
        "checkpoint-4": "it is empty",
        "checkpoint-5": "model-00001-of-00002.safetensors is missing",
        "checkpoint-6": "trainer_state.json is of step 7",
        "checkpoint-best": "no number of a step is in its name",
        "checkpoint-8": "it is not a folder",
        "checkpoint-9": "checkpoint-09 is of the same step",
        "checkpoint-10": "model.safetensors has 23 bytes instead of 5",
        "checkpoint-11": "optimizer.pt is missing",
    }


@pytest.mark.parametrize("weights", ["pytorch_model-00001-of-00002.bin", "adapter_model.bin", "pytorch_model.bin"])
def test_weights_of_every_kind_are_known(tmp_path: Path, weights: str) -> None:
    folder = hf_checkpoint(tmp_path, 1)
    (folder / "model.safetensors").rename(folder / weights)
    assert steps(external_checkpoints.find_checkpoints(tmp_path)) == [1]


def test_where_nothing_is_found_it_is_said_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    assert refusal(tmp_path).endswith("no checkpoints are there; looked for ckpt/step_*, step_* or checkpoint-*")
    (tmp_path / "checkpoint-4").mkdir()
    assert "no checkpoint is whole; checkpoint-4: it is empty" in refusal(tmp_path)


def test_links_are_followed_inside_the_folder_and_nowhere_else(tmp_path: Path) -> None:
    """R7."""
    root, secret = run_folder(tmp_path / "old", [1]), tmp_path / "secret"
    secret.write_text("hers")
    (root / "blobs" / "shared").mkdir(parents=True)
    (root / "blobs" / "shared" / "w").write_text("1")
    (root / "ckpt" / "step_00000002").symlink_to(root / "blobs")
    assert sorted(external_checkpoints.find_checkpoints(root).head.files) == ["shared/w"]
    link = root / "ckpt" / "step_00000001" / "key"
    for target, said in ((secret, f"it leads to {secret}, and links"), (tmp_path / "none", "leads nowhere")):
        link.symlink_to(target)
        assert str(link) in refusal(root) and said in refusal(root)
        link.unlink()
    link.symlink_to(link.parent)
    assert "links that lead in a circle" in refusal(root)
    link.unlink()
    (root / "ckpt" / "step_00000003").symlink_to(tmp_path)
    assert "step_00000003: it leads to" in refusal(root)
    (root / "ckpt" / "step_00000003").unlink()
    (root / "events.jsonl").unlink()
    (root / "events.jsonl").symlink_to(secret)
    assert "events.jsonl: it leads to" in refusal(root)


def test_what_is_no_file_cannot_travel(short_tmp_path: Path) -> None:
    root = run_folder(short_tmp_path, [1])
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(root / "ckpt" / "step_00000001" / "s"))
        assert "only plain files and folders" in refusal(root)
    os.unlink(root / "ckpt" / "step_00000001" / "s")
    (root / "ckpt" / "step_00000001" / "back\\slash").touch()
    assert "is not a plain path" in refusal(root)
    os.unlink(root / "ckpt" / "step_00000001" / "back\\slash")
    (root / "ckpt" / "step_00000001" / MANIFEST_FILE).write_text("{}")
    assert "Relay keeps its own list of files under this name" in refusal(root)


def test_a_log_history_becomes_the_curve_that_our_trainers_would_have_drawn(tmp_path: Path) -> None:
    history: list[dict[str, Any]] = [
        {"step": 1, "loss": 2.0, "grad_norm": 0.5, "learning_rate": 1e-4, "epoch": 0.1},
        {"step": 2, "eval_loss": 1.0, "eval_runtime": 3.0, "eval_samples_per_second": 2.0, "epoch": 0.2},
        {"step": 2, "loss": math.nan, "train_tokens_per_second": 9.0},
        {"step": 2, "train_runtime": 5.0, "train_loss": 1.5, "train_samples_per_second": 7.0, "total_flos": 8.0},
        {"step": 2, "loss": 10**400},
        {"step": "?", "loss": 1.0},
        {"step": 3, "loss": 9.0},
    ]
    hf_checkpoint(tmp_path, 1)
    hf_checkpoint(tmp_path, 2, history)
    found = external_checkpoints.find_checkpoints(tmp_path)
    curve = external_metrics.read_curve(tmp_path, found.checkpoints)
    first, evaluated, lost, ended, _ = (json.loads(line) for line in curve.lines)
    assert first["values"] == {
        "train_loss": 2.0, "grad_norm": 0.5, "learning_rate": 1e-4, "epoch": 0.1, "perplexity": math.exp(2.0),
    }  # fmt: skip
    named = {"eval_loss": 1.0, "eval_samples_per_second": 2.0, "epoch": 0.2, "eval_perplexity": math.exp(1.0)}
    assert evaluated["values"] == named
    assert lost["values"] == {"train_loss": "NaN", "tokens_per_second": 9.0, "perplexity": "NaN"}
    assert ended["values"] == {"train_loss_mean": 1.5, "train_runtime": 5.0, "total_flos": 8.0}
    assert json.loads(curve.lines[-1])["total"] == 100
    assert (curve.checkpoint_metrics, curve.unread) == ({1: {}, 2: {"eval_loss": 1.0}}, 3)
    assert curve.origin == "checkpoint-2/trainer_state.json"


def test_event_lines_are_taken_as_they_are_and_others_counted(tmp_path: Path) -> None:
    evaluated = {"type": "metric", "step": 2, "values": {"eval_loss": 0.5, "eval_runtime": 2.0}}
    saved = {"type": "checkpoint", "step": 2, "path": "step_00000002", "metrics": {"accuracy": 0.75}}
    progress = {"type": "progress", "step": 2, "total": 9}
    other = ["not json", '{"event": "LEASE_ACQUIRED"}', '{"type": "metric", "step": 1}', "[" * 10_000, "", "7"]
    lines: Lines = [
        point(1, 3.0),
        evaluated,
        saved,
        progress,
        {"type": "message", "text": "hello"},
        point(3, 1.0),
        *other,
    ]
    root = run_folder(tmp_path / "old", [1, 2], lines)
    curve = external_metrics.read_curve(root, external_checkpoints.find_checkpoints(root).checkpoints)
    assert values(curve) == {1: {"train_loss": 3.0}, 2: {"eval_loss": 0.5, "eval_runtime": 2.0}}
    assert json.loads(curve.lines[-1]) == progress
    assert (curve.points, curve.unread, curve.origin) == (3, 5, "events.jsonl")
    assert curve.checkpoint_metrics == {2: {"eval_loss": 0.5, "accuracy": 0.75}}
    assert external_metrics.list_names(curve.metrics) == "train_loss, eval_loss, eval_runtime"


def test_where_event_lines_say_nothing_the_trainers_own_history_does(tmp_path: Path) -> None:
    hf_checkpoint(tmp_path, 2)
    (tmp_path / "events.jsonl").write_text("lease acquired\n")
    curve = external_metrics.read_curve(tmp_path, external_checkpoints.find_checkpoints(tmp_path).checkpoints)
    assert (sorted(values(curve)), curve.unread) == ([1, 2], 1)


def test_a_curve_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = run_folder(tmp_path / "old", [9], [point(step, 1.0) for step in range(9)])
    monkeypatch.setattr(external_metrics, "MAX_CURVE", 100)
    assert "at most 100B are taken" in refusal(root)
