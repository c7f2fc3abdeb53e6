"""`relayctl import` against a real deployment: a training that ran elsewhere becomes a run, which is continued."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tiny
from tests.history.checker import violations
from tests.history.record import recorded
from tests.relayctl.deployed import relayctl, run_file
from tests.relayctl.older import Lines, hf_checkpoint, point, run_folder

pytestmark = pytest.mark.usefixtures("environment")


def curve_of(run: str, metric: str = "train_loss") -> list[tuple[int, float]]:
    [curve] = json.loads(relayctl("metrics", run, metric, "-o", "json").stdout)["metrics"]
    return list(zip(curve["steps"], curve["values"], strict=True))


def checkpoints_of(run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(relayctl("checkpoints", run, "-a", "-o", "json").stdout)["checkpoints"]
    return found


def test_a_workers_run_goes_on_as_one_run_with_one_curve(folder: Path, tmp_path: Path) -> None:
    lines: Lines = [*(point(step, 1 / step) for step in range(1, 9)), "LEASE_ACQUIRED", {"type": "lease", "token": "x"}]
    old = run_folder(tmp_path / "old-run", [2, 4, 7], lines)
    (old / "ckpt" / "step_00000009").mkdir()
    file = run_file(tmp_path, "worker", STEPS="12")

    plan = relayctl("import", file, str(old), "--dry-run").stdout
    assert f"3 checkpoints (steps 2, 4, 7): 3 files, 3 B, from {old}" in plan
    assert "step_00000009: it is empty" in plan
    assert "7 points of train_loss, up to step 7, from events.jsonl; 2 entries there not understood" in plan
    assert "status COMPLETED, latest_ckpt step_00000007" in plan
    assert "all of them while it is paused; then the run file keeps the last 3" in plan
    assert "paused until it is resumed; can run now on local-1" in plan and "1 file" in plan
    relayctl("show", "worker", code=4)

    output = relayctl("import", file, str(old)).stdout
    assert "imported worker; it is paused at step 7; continue it with: relayctl resume worker" in output
    shown = json.loads(relayctl("show", "worker", "-o", "json").stdout)
    assert (shown["state"], shown["reason"].startswith(f"imported from {old} on ")) == ("paused", True)
    assert "elsewhere  from the start" in relayctl("show", "worker").stdout
    assert curve_of("worker") == [(step, 1 / step) for step in range(1, 8)]
    assert {each["step"]: each["head"] for each in checkpoints_of("worker")} == {2: False, 4: False, 7: True}
    relayctl("pull", "worker@4", str(tmp_path / "four"))
    assert (tmp_path / "four" / "step").read_text() == "4"
    relayctl("verify", "worker", "--deep")
    assert "paused" in relayctl("why", "worker").stdout

    shutil.rmtree(old)
    relayctl("resume", "worker")
    relayctl("wait", "worker", "--timeout", "60s")
    assert relayctl("logs", "worker").stdout == "begins at 7\n"
    assert curve_of("worker") == [(step, 1 / step) for step in range(1, 13)]
    [one, two] = json.loads(relayctl("why", "worker", "-o", "json").stdout)["attempts"]
    assert (one["outcome"], two["resumed_step"]) == ("stopped", 7)
    found = violations(asyncio.run(recorded((folder / "d" / "coordinator" / "database-url").read_text().strip())))
    assert not found, list(map(str, found))


def test_the_same_again_makes_nothing_and_something_else_is_refused(tmp_path: Path) -> None:
    old = run_folder(tmp_path / "old", [2, 4], [point(1, 1.0)])
    file = run_file(tmp_path, "twice")
    assert relayctl("import", file, str(old), "-q").stdout == "twice\n"
    again = relayctl("import", file, str(old)).stdout
    assert "twice had been imported already and it is paused: imported from" in again
    assert json.loads(relayctl("import", file, str(old), "-o", "json").stdout).get("created", False) is False
    other = relayctl("import", file, str(old), "--last", "1", code=4).stderr
    assert other.startswith("there is a run twice already, with other checkpoints. Choose another name")
    spec = relayctl("import", file, str(old), "--set", "env.STEPS=13", "--dry-run", code=4).stderr
    assert "with another spec" in spec and "--name" in spec
    assert relayctl("import", file, str(old), "--name", "thrice", "--last", "1", "-q").stdout == "thrice\n"
    assert [each["step"] for each in checkpoints_of("thrice")] == [4]


def test_without_a_name_it_is_named_like_its_folder(tmp_path: Path) -> None:
    old = run_folder(tmp_path / "Old Run", [1])
    file = Path(run_file(tmp_path, "unnamed"))
    spec = yaml.safe_load(file.read_text())
    del spec["name"]
    file.write_text(yaml.safe_dump(spec))
    assert relayctl("import", str(file), str(old), "-q").stdout == "old-run\n"


def test_an_import_that_was_cut_is_finished_by_the_same_command(folder: Path, tmp_path: Path) -> None:
    """F17: what has arrived is not sent again, and no second run is made."""
    old = run_folder(tmp_path / "old", [1, 2])
    for step in (1, 2):
        (old / "ckpt" / f"step_{step:08d}" / "weights").write_bytes(bytes([step]) * (5 << 20))
    file = run_file(tmp_path, "cut")
    blobs = folder / "d" / "coordinator" / "artifacts" / "blobs"
    before = set(blobs.glob("??/*"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relayctl.client.client.RelayClient.import_run", _cut_after_the_plan())
        relayctl("import", file, str(old), code=130)
    arrived = {path: path.stat().st_ino for path in set(blobs.glob("??/*")) - before}
    assert arrived
    relayctl("show", "cut", code=4)
    relayctl("import", file, str(old))
    assert all(path.stat().st_ino == inode for path, inode in arrived.items())
    assert [each["step"] for each in checkpoints_of("cut")] == [1, 2]


def _cut_after_the_plan() -> Any:
    """Ctrl-C, when everything has been sent and nothing is made of it yet."""
    from relayctl.client.client import RelayClient

    whole = RelayClient.import_run

    async def cut(self: RelayClient, *arguments: Any, **more: Any) -> Any:
        if not more.get("validate_only"):
            raise KeyboardInterrupt
        return await whole(self, *arguments, **more)

    return cut


def test_what_the_run_file_will_not_keep_is_said_before(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        hf_checkpoint(tmp_path / "hf", step, [{"step": step, "eval_loss": step / 10}, {"step": step, "loss": 1.0}])
    file = run_file(tmp_path, "aged", STEPS="6")
    plan = relayctl("import", file, str(tmp_path / "hf")).stdout
    assert "steps 1, 2 are deleted once it is resumed, for the run file keeps the last 3; to keep more: --set" in plan
    assert "relayctl checkpoints pin aged@2" in plan
    ages = relayctl("import", file, str(tmp_path / "hf"), "--set", "checkpoint.keep.max_age=1d", "--dry-run", code=4)
    assert "steps 1, 2 are deleted with the next look at ages" in ages.stdout
    found = checkpoints_of("aged")
    assert {each["step"]: each["metrics"]["eval_loss"] for each in found} == {n: n / 10 for n in (1, 2, 3, 4, 5)}
    assert [each["step"] for each in found if each.get("remove_reason")] == [1, 2]
    relayctl("pull", "aged@5", str(tmp_path / "five"))
    names = sorted(path.name for path in (tmp_path / "five").iterdir())
    assert names == ["model.safetensors", "optimizer.pt", "relay_state.json", "trainer_state.json"]


def test_what_is_wrong_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    file, old = run_file(tmp_path, "wrong"), run_folder(tmp_path / "old", [1])

    def output(*arguments: str, code: int) -> str:
        text = relayctl(*arguments, code=code).stderr
        assert text.count("\n") == 1, text
        return text

    assert "old/none is not a folder" in output("import", file, str(old / "none"), code=2)
    assert "looked for ckpt/step_*, step_* or checkpoint-*" in output("import", file, str(tmp_path), code=1)
    assert "127.0.0.1:9" in output("--coordinator", "127.0.0.1:9", "import", file, str(old), "-q", code=3)
    rehearsed = relayctl("--coordinator", "127.0.0.1:9", "import", file, str(old), "--dry-run", code=3).stdout
    assert "1 checkpoint (step 1)" in rehearsed and "the coordinator does not answer" in rehearsed
    mistakes = relayctl("import", file, str(old), "--set", "priorty=1", code=1).stderr
    assert "1 mistake" in mistakes and "priority" in mistakes
    (old / "ckpt" / "step_00000001" / "out").symlink_to("/etc/hostname")
    assert "step_00000001/out: it leads to /etc/hostname" in output("import", file, str(old), code=1)
    assert "did you mean: relayctl import" in output("migrate", code=2)
    assert output("import", file, str(_many(tmp_path)), code=1).endswith("so say --last 1000\n")
    relayctl("show", "wrong", code=4)


def _many(folder: Path) -> Path:
    return run_folder(folder / "many", range(1, 1002))


@pytest.mark.rotating(4, of="training")
def test_a_trainers_own_checkpoint_is_fine_tuned_further(tiny_model: Path, tmp_path: Path) -> None:
    """Model and data are uploaded with the run, which resumes from a plain Trainer's checkpoint."""
    tiny.make_rows(tmp_path / "train.jsonl", kind="text")
    shutil.copytree(tiny_model, tmp_path / "model")
    elsewhere = tmp_path / "elsewhere"
    program = [sys.executable, "-m", "tests.relayctl.plain_trainer", str(tmp_path), str(elsewhere)]
    subprocess.run(program, check=True, capture_output=True)
    spec = {
        "version": "relay/v1",
        "name": "further",
        "method": "sft",
        "model": {"name_or_path": "./model"},
        "data": {"train": "train.jsonl"},
        "options": {"max_steps": 6, "logging_steps": 1, "per_device_train_batch_size": 4},
        "env": {"OMP_NUM_THREADS": "1"},
    }
    (tmp_path / "further.yaml").write_text(yaml.safe_dump(spec))
    output = relayctl("import", str(tmp_path / "further.yaml"), str(elsewhere)).stdout
    assert "2 checkpoints (steps 2, 4)" in output and "imported further; it is paused at step 4" in output
    relayctl("resume", "further")
    relayctl("wait", "further", "--timeout", "120s")
    assert [step for step, _ in curve_of("further")] == [1, 2, 3, 4, 5, 6]
    assert (
        "another trainer saved this checkpoint: training resumes, but not bit for bit"
        in relayctl("watch", "further").stdout
    )
    assert relayctl("pull", "further", str(tmp_path / "out")).stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()
