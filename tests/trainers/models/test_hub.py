"""Names on the Hub: resolved once, pinned for all attempts, and distinguished from a Hub that is out of reach. The
client is the real one, over HTTP.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from tests import tiny
from tests.hub import server as hub_server
from tests.trainers.attempts import Attempt, events
from trainers.environment import AttemptEnvironment

PYTHON = [sys.executable, "-m", "trainers"]
TIMEOUT = 120


@pytest.fixture(scope="module")
def hub(work: Path) -> Iterator[hub_server.Hub]:
    """A Hub with the tiny model and its rows."""
    with hub_server.serving() as hub:
        hub.repository("models", "org/tiny").commit(hub_server.files_of(work / "model"))
        hub.repository("datasets", "org/sums").commit({"train.jsonl": (work / "rows.jsonl").read_bytes()})
        yield hub


@pytest.fixture
def hub_run(run: dict[str, Any]) -> dict[str, Any]:
    return run | {
        "model": {"name_or_path": "org/tiny"},
        "data": {"train": "hf://org/sums", "eval": {"split": 0.1}},
        "lora": {"r": 4, "target_modules": "all-linear"},
        "options": run["options"] | {"max_steps": 4, "logging_steps": 1},
        "checkpoint": {"every": "2 steps"},
    }


def train(
    folder: Path,
    run: dict[str, Any],
    environ: dict[str, str],
    resume: Path | None = None,
    pins: dict[str, str] | None = None,
) -> Attempt:
    """Run one attempt under an agent's environment, by `python -m trainers` in a process of its own."""
    folder.mkdir(parents=True)
    contract = AttemptEnvironment(
        run_id="tiny",
        attempt=1,
        run_file=folder / "run.json",
        output=folder / "output",
        staging=folder / "staging",
        events=folder / "events.jsonl",
        resume_from=resume,
        pins=pins or {},
    )
    contract.run_file.write_text(json.dumps(run))
    environment = os.environ | environ | contract.to_environ() | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*PYTHON, str(contract.run_file)], env=environment, capture_output=True, timeout=TIMEOUT)
    (folder / "stderr.log").write_bytes(done.stderr)
    return Attempt(done.returncode, folder, None, events(contract.events))


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_a_pinned_commit_holds_when_the_branch_moves_on(
    hub: hub_server.Hub, hub_run: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    """The first attempt pins model and data; then both change. An attempt on another host (without cache) with those
    pins ends in the same bits and reads nothing that is not pinned. The adapter names its base as others can find it.
    """
    model, data = hub.repository("models", "org/tiny"), hub.repository("datasets", "org/sums")
    first = train(tmp_path / "first", hub_run, hub.environ(tmp_path / "host-a"))
    assert first.code == 0, (tmp_path / "first" / "stderr.log").read_text()
    pins = {event["name"]: event["value"] for event in first.events if event["type"] == "pin"}
    assert pins == {"model": model.names["main"], "data:org/sums": data.names["main"]}

    model.commit(hub_server.files_of(with_other_weights(tiny_model, tmp_path / "other")))
    data.commit({"train.jsonl": tiny.make_rows(tmp_path / "other.jsonl", seed=9).read_bytes()})
    hub.requests.clear()
    second = train(tmp_path / "second", hub_run, hub.environ(tmp_path / "host-b"), first.checkpoint(2), pins)
    assert second.code == 0, (tmp_path / "second" / "stderr.log").read_text()
    assert [event for event in second.events if event["type"] == "pin"] == []
    assert second.weights() == first.weights()
    assert {key: value for key, value in first.curve.items() if key in second.curve} == second.curve
    assert [asked for asked in hub.requests if not any(commit in asked for commit in pins.values())] == []

    facts = json.loads((second.folder / "output" / "relay.json").read_text())
    assert (facts["model"], facts["revision"]) == ("org/tiny", pins["model"])
    for folder in (second.folder / "output", first.checkpoint(2)):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", pins["model"])
        assert str(tmp_path) not in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_a_hub_that_is_away_is_the_hosts_fault(hub_run: dict[str, Any], tmp_path: Path) -> None:
    """Another minute or another host may cure it, so it is an ordinary failure of one line, which is retried."""
    with hub_server.serving() as closed:
        environ = closed.environ(tmp_path / "cache")
    attempt = train(tmp_path / "away", hub_run, environ)
    [message] = attempt.messages("error")
    assert (attempt.code, message.startswith("model: the Hub is out of reach")) == (1, True), message
    assert "Traceback" not in (attempt.folder / "stderr.log").read_text()


#: A program that answers questions about the Hub, one JSON line for each; its environment names the Hub before the
#: client is imported.
ASK = """
import json, sys
from runfile import DataSource, ModelSection
from trainers import errors
from trainers.models import hub

def model(name, revision=None, pins={}):
    return str(hub.fetch_model(hub.resolve_model(ModelSection(name_or_path=name, revision=revision), pins)).folder)

def rows(path, split=None, pins={}):
    source = DataSource(path=path, split=split)
    return list(hub.load_dataset_rows(source, hub.resolve_dataset(source, pins)))

for question in sys.argv[1:]:
    try:
        answer = eval(question)
    except (errors.ConfigError, errors.HostError) as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer))
"""


def ask(environ: dict[str, str], *questions: str) -> list[Any]:
    """Return the answers to calls of `model` and `rows`."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, *questions],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_the_hub_does_not_have_is_not_retried(hub: hub_server.Hub, tmp_path: Path) -> None:
    hub.repository("models", "org/empty").commit({"README.md": b"nothing"})
    gone = "0" * 40
    answers = ask(
        hub.environ(tmp_path),
        "model('org/none')",
        "model('org/tiny', 'v9')",
        f"model('org/tiny', pins={{'model': '{gone}'}})",
        "model('org/empty')",
        "rows('hf://org/none')",
        "rows('hf://org/sums', 'validation')",
        f"rows('hf://org/sums', pins={{'data:org/sums': '{gone}'}})",
    )
    expected = [
        "model: the Hub has no org/none that can be read",
        "model: the Hub has no org/tiny at revision v9",
        f"model: the Hub has no org/tiny at revision {gone}",
        "model.name_or_path: org/empty holds no model",
        "dataset: the Hub has no org/none",
        "data: org/sums: Unknown split",
        f"data: org/sums: Revision '{gone}' doesn't exist",
    ]
    for answer, said in zip(answers, expected, strict=True):
        assert answer.startswith(f"ConfigError: {said}"), answer


def test_a_hub_in_trouble_is_told_from_a_wrong_name(hub: hub_server.Hub, tmp_path: Path) -> None:
    """A 503 does not answer whether the name is right."""
    hub.failing = True
    try:
        answers = ask(hub.environ(tmp_path), "model('org/none')", "rows('hf://org/sums')")
    finally:
        hub.failing = False
    assert [answer.partition(":")[0] for answer in answers] == ["HostError", "HostError"]


def test_a_pinned_model_in_the_cache_needs_no_hub(hub: hub_server.Hub, tmp_path: Path) -> None:
    commit = hub.repository("models", "org/tiny").names["main"]
    question = f"model('org/tiny', pins={{'model': '{commit}'}})"
    [folder] = ask(hub.environ(tmp_path), question)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in Path(folder).iterdir()}
    with hub_server.serving() as closed:
        environ = closed.environ(tmp_path)
    assert ask(environ, question) == [folder]


def with_other_weights(model: Path, folder: Path) -> Path:
    """Copy the model with different weights."""
    shutil.copytree(model, folder)
    weights = folder / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    return folder
