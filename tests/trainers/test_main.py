"""`python -m trainers` as a real process: standalone, under an agent's environment, and with signals."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from trainers import standalone
from trainers.launch import ranks
from trainers.launch.control import CONTROL_VARIABLE, PROCESSES_VARIABLE, ControlFolder, Outcome

PYTHON = [sys.executable, "-m", "trainers"]
TIMEOUT = 120
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  #: what a tiny model needs; more only get into each other's way


def _file(folder: Path, run: dict[str, Any], **options: Any) -> Path:
    path = folder / "run.json"
    path.write_text(json.dumps(run | {"name": "tiny", "options": run["options"] | options}))
    return path


def _train(folder: Path, *arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*PYTHON, *arguments],
        cwd=folder,
        env=os.environ | ONE_THREAD | environ,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def _events(folder: Path, attempt: int) -> list[dict[str, Any]]:
    lines = (folder / "runs" / "tiny" / "attempts" / str(attempt) / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _wait_for(process: "subprocess.Popen[str]", beginning: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return
    pytest.fail(f"the process ended before it said {beginning}")


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_alone_stopped_and_started_again(run: dict[str, Any], tmp_path: Path) -> None:
    """B5: no coordinator. SIGTERM in the middle saves and exits 143; the same command resumes, and once more it has
    nothing to do.
    """
    path = _file(tmp_path, run, max_steps=4000, logging_steps=1, eval_steps=4000)
    with subprocess.Popen(
        [*PYTHON, str(path)],
        cwd=tmp_path,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _wait_for(process, "step 3/")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    saved = [event["step"] for event in _events(tmp_path, 1) if event["type"] == "checkpoint"]
    [stopped_at] = saved
    again = _train(tmp_path, str(path), "--set", f"options.max_steps={stopped_at + 2}")
    assert again.returncode == 0, again.stderr
    assert f"resumes from step_{stopped_at:08d}" in again.stdout
    steps = [event["step"] for event in _events(tmp_path, 2) if event["type"] == "metric"]
    assert min(steps) == stopped_at + 1
    assert (tmp_path / "runs" / "tiny" / "output" / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_a_person_sees_a_bar_and_gets_a_picture(run: dict[str, Any], tmp_path: Path) -> None:
    """B5. In a terminal a bar counts the steps, with the log above it; at the end there is a picture of the curve."""
    path = _file(tmp_path, run, max_steps=6, logging_steps=2, eval_steps=4)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PYTHON, str(path)], cwd=tmp_path, env=os.environ | ONE_THREAD, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while block := os.read(ours, 4096):
            said += block
    os.close(ours)
    assert process.wait(TIMEOUT) == 0, said.decode()
    assert b"6/6" in said and b"step 4/6  train_loss " in said
    curve = tmp_path / "runs" / "tiny" / "curve.png"
    assert curve.read_bytes().startswith(b"\x89PNG") and b"its curve: runs/tiny/curve.png" in said


def test_a_curve_is_that_of_all_attempts(tmp_path: Path) -> None:
    """Where a later attempt repeats a step, its value counts. A torn line and values that are not finite do not."""
    for attempt, steps in ((1, (1, 2, 3)), (2, (3, 4))):
        folder = tmp_path / "attempts" / str(attempt)
        folder.mkdir(parents=True)
        lines = [
            json.dumps({"type": "metric", "step": s, "values": {"loss": attempt + s / 10, "n": "NaN"}}) for s in steps
        ]
        (folder / "events.jsonl").write_text("\n".join(lines) + '\n{"type": "metric", "st')
    assert standalone.read_curves(tmp_path) == {"loss": {1: 1.1, 2: 1.2, 3: 2.3, 4: 2.4}}


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_another_world_than_asked_for_is_refused(run: dict[str, Any], tmp_path: Path) -> None:
    """`accelerate launch --cpu --num_processes 2` exits 0 with a world of one: each rank checks, and refuses."""
    control = ControlFolder(tmp_path / "control")
    control.root.mkdir()
    contract = {
        "RELAY_RUN_ID": "tiny",
        "RELAY_RUN_FILE": str(_file(tmp_path, run)),
        "RELAY_OUTPUT_DIR": str(tmp_path / "output"),
        "RELAY_CKPT_STAGING_ROOT": str(tmp_path / "staging"),
        "RELAY_EVENTS": str(tmp_path / "events.jsonl"),
        CONTROL_VARIABLE: str(control.root),
        PROCESSES_VARIABLE: "2",
    }
    argv = [
        argument
        for argument in ranks.build_command(2, 1, {}, control.root)
        if argument not in ("--multi_gpu", "--main_process_port", "0")
    ]
    argv.insert(argv.index("--num_processes"), "--cpu")
    done = subprocess.run(argv, env=os.environ | contract, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 78, done.stderr
    assert control.read_outcome() == Outcome(78, "the launcher must start 2 processes, and it started 1")
    assert not (tmp_path / "output").exists()


def test_a_wrong_run_file_is_refused_before_any_library_is_loaded(run: dict[str, Any], tmp_path: Path) -> None:
    path = _file(tmp_path, run | {"modle": {}}, learnin_rate=3)
    done = _train(tmp_path, str(path))
    assert done.returncode == 78
    assert "did you mean learning_rate?" in done.stderr
    assert "did you mean model?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_alone_nothing_is_waited_for(run: dict[str, Any], tmp_path: Path) -> None:
    done = _train(tmp_path, str(_file(tmp_path, run | {"after": "runs/x"})))
    assert done.returncode == 78 and done.stderr.startswith("after: only a coordinator can wait for runs/x")


def test_under_an_agent_the_refusal_is_an_event_too(run: dict[str, Any], tmp_path: Path) -> None:
    path = _file(tmp_path, run | {"method": "sftt"})
    done = _train(tmp_path, str(path), RELAY_EVENTS=str(tmp_path / "events.jsonl"), RELAY_RUN_ID="tiny")
    assert done.returncode == 78
    [event] = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (event["type"], event["level"]) == ("message", "error")


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="the host has it")
def test_what_the_launcher_would_miss_is_one_line(run: dict[str, Any], tmp_path: Path) -> None:
    path = _file(tmp_path, run | {"launch": {"deepspeed_config": {"zero_stage": 2}}})
    done = _train(tmp_path, str(path))
    assert done.returncode == 1
    assert done.stderr == "launch.deepspeed_config needs the package deepspeed\n"


def test_the_parent_stays_light() -> None:
    heavy = ("torch", "transformers", "accelerate", "numpy")
    code = f"import sys, trainers.__main__; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.stdout.strip() == "[]", done.stderr


def test_threads_that_wait_sleep_on_cpus() -> None:
    """On a shared machine spinning takes the cores from the work; on GPUs the host's threads keep their default."""
    assert ranks.cpu_environment(0) == ranks.cpu_environment(None) == {"OMP_WAIT_POLICY": "passive"}
    assert ranks.cpu_environment(2) == {}
