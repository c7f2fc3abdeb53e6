"""What trainers are started as."""

from pathlib import Path
from typing import Any

import pytest

from agent.attempt.launch import LaunchSpec, build_launch, filter_environment
from agent.folder import AttemptFolder
from agent.wire import Assignment
from relay.v1 import agents_pb2 as pb
from runfile import RunFile
from tests.agent.hosts import stub

FOLDER = AttemptFolder(Path("/r/runs/x/attempts/1-abc"))


def launched(resume: Path | None = None, *, gpus: bool = False, **more: Any) -> LaunchSpec:
    run = RunFile.model_validate({"version": "relay/v1", "name": "x"} | more)
    assignment = Assignment("runs/x/leases/l", pb.Assignment(run="runs/x", attempt=2, slots=[1, 3]))
    return build_launch(assignment, run, FOLDER, resume=resume, python="/py", gpus=gpus, inherited={"PATH": "/bin"})


def test_a_method_is_started_on_its_resolved_run_file() -> None:
    made = launched(method="sft", checkpoint={"every": "10m"})
    assert made.argv == ("/py", "-m", "trainers", str(FOLDER.run_file))
    assert made.env["RELAY_CKPT_INTERVAL"] == "600" and made.env["RELAY_ATTEMPT"] == "2"
    assert made.env["PATH"] == "/bin"


def test_a_command_gets_its_checkpoint_only_when_it_resumes() -> None:
    run = stub() | {"command": ["bash", "run.sh"], "resume_args": ["--load", "{checkpoint}"], "workdir": "src"}
    fresh, resumed = launched(**run), launched(Path("/c/step_1"), **run)
    assert fresh.argv == ("bash", "run.sh") and fresh.cwd == FOLDER.work / "src"
    assert "RELAY_RESUME_FROM" not in fresh.env
    assert resumed.argv == ("bash", "run.sh", "--load", "/c/step_1")
    assert resumed.env["RELAY_RESUME_FROM"] == "/c/step_1"


@pytest.mark.parametrize(("gpus", "visible", "count"), [(True, "1,3", "2"), (False, "", "0")])
def test_a_trainer_sees_the_gpus_of_its_slots(gpus: bool, visible: str, count: str) -> None:
    env = launched(method="command", command=["x"], gpus=gpus).env
    assert (env["CUDA_VISIBLE_DEVICES"], env["RELAY_GPUS"]) == (visible, count)


def test_only_what_a_trainer_needs_gets_through() -> None:
    """R6."""
    given = {
        "PATH": "p",
        "HF_HOME": "h",
        "CUDA_HOME": "c",
        "LC_ALL": "C",
        "RELAY_SHARED_SECRET": "s",
        "AWS_SECRET": "a",
    }
    given |= {"HF_TOKEN": "t", "RELAY_COORDINATOR": "x", "GITHUB_TOKEN": "g", "NVIDIA_API_KEY": "n"}
    assert set(filter_environment(given)) == {"PATH", "HF_HOME", "CUDA_HOME", "LC_ALL"}
