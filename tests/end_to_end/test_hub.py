"""A tiny model is trained and published: what is on the Hub loads, and gives the logits of what was trained."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.v1 import runs_pb2 as pb
from storage.hub.commit_markers import CommitMarker
from tests import tiny
from tests.end_to_end.fleet import Fleet
from tests.hub.checker import find_differences
from tests.hub.server import Hub, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.thorough]

REPO = "me/sums"
SPEC: dict[str, Any] = {
    "method": "sft",
    "model": {"name_or_path": "./model", "known_as": "org/tiny"},
    "lora": {"r": 4, "target_modules": "all-linear"},
    "data": {"train": "train.jsonl", "eval": {"split": 0.2}},
    "options": {
        "max_steps": 12,
        "logging_steps": 2,
        "eval_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.02,
        "max_length": 32,
    },
    "checkpoint": {"every": "6 steps"},
    "env": {"OMP_NUM_THREADS": "1"},
    "seed": 7,
}

#: Logits of an adapter on the base model here, and of a merged model, where there is one.
LOGITS = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, merged = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(adapter)
inputs = tokenizer("12 + 30 =", return_tensors="pt")
ids = {"input_ids": inputs["input_ids"]}
with torch.no_grad():
    plain = AutoModelForCausalLM.from_pretrained(base).eval()(**ids).logits
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()(**ids).logits
    whole = AutoModelForCausalLM.from_pretrained(merged).eval()(**ids).logits
print(json.dumps([float((adapted - plain).abs().max()), float((adapted - whole).abs().max()), adapted.sum().item()]))
"""

VALID = """
import sys
from huggingface_hub import ModelCard
card = ModelCard.load(sys.argv[1])
card.validate()
print(card.data.base_model, card.data.library_name)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def submitter(fleet: Fleet, tiny_model: Path) -> Path:
    folder = fleet.folder / "submitter"
    folder.mkdir()
    shutil.copytree(tiny_model, folder / "model")
    tiny.make_rows(folder / "train.jsonl")
    return folder


async def python(program: str, *arguments: str, environment: dict[str, str]) -> str:
    """What a program prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *arguments),
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_what_is_published_loads_and_gives_the_right_logits(
    fleet: Fleet, submitter: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapter and merged model, card and relay.json; a second run in the same repository leaves `main` alone, and
    what the registry says of its state is so."""
    for name, value in (hub.environ(fleet.folder / "cache") | {"HF_TOKEN": "hf_canary"}).items():
        monkeypatch.setenv(name, value)  # of hosts started from now on
    await fleet.host("a")
    run = await fleet.submit({**SPEC, "hub": {"repo": REPO, "push": "both"}}, "one")
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED, ended.error
    history = [CommitMarker.parse(commit.message) for commit in hub.model(REPO).history("main")]
    kinds = [(mark.kind, mark.step) for mark in history if mark]
    assert kinds[0] == ("result", 12) and {kind for kind, _ in kinds[1:]} <= {"model"}  # as far as there was time

    files = hub.model(REPO).folder("main")
    told = json.loads(files["relay.json"])
    assert (told["run"], told["step"], told["final"], told["model"]) == ("one", 12, True, "org/tiny")
    said = [event.text async for event in run.history() if event.kind == pb.RunEvent.MESSAGE]
    assert "merged/model.safetensors" in files, said
    assert {"adapter_model.safetensors", "merged/model.safetensors", "curve.png", "tokenizer.json"} <= set(files)
    assert not {name for name in files if "optimizer" in name or "rank_" in name or "trainer_state" in name}

    there = fleet.folder / "loaded"
    for name, body in files.items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(body)
    arguments = (str(submitter / "model"), str(there), str(there / "merged"))
    changed, apart, published = json.loads(await python(LOGITS, *arguments, environment={}))
    assert changed > 1e-2 and apart < 1e-4
    await fleet.relayctl("pull", "one", str(fleet.folder / "pulled"))
    pulled = (str(submitter / "model"), str(fleet.folder / "pulled"), str(there / "merged"))
    assert json.loads(await python(LOGITS, *pulled, environment={}))[2] == published

    shown = await fleet.relayctl("export", "one", "--to", f"hf://{REPO}")
    assert f"commit {hub.model(REPO).branches['main'][:8]}" in shown, "what its agent has published is the same"
    await fleet.relayctl("export", "one", "--to", str(fleet.folder / "exported"))
    exported = {str(path.relative_to(fleet.folder / "exported")) for path in (fleet.folder / "exported").rglob("*")}
    assert {"adapter_model.safetensors", "tokenizer.json", "README.md"} <= exported
    assert not {name for name in exported if "optimizer" in name or "rank_" in name or "trainer_state" in name}
    again = (str(submitter / "model"), str(fleet.folder / "exported"), str(there / "merged"))
    assert json.loads(await python(LOGITS, *again, environment={}))[2] == published

    card = await python(VALID, str(there / "README.md"), environment=hub.environ(fleet.folder / "cache"))
    assert card.split() == ["org/tiny", "peft"]
    text = files["README.md"].decode()
    assert "eval_loss" in text and "sha256:" in text and "learning_rate" in text and "| 1 | a |" in text

    second = await fleet.submit({**SPEC, "hub": {"repo": REPO, "state": True}}, "two")
    assert (await second.ended()).state == pb.Run.SUCCEEDED
    parts = [part for checkpoint in await second.checkpoints(superseded=True) for part in checkpoint.parts]
    registry = [(copy.uri, part.manifest_digest) for part in parts for copy in part.copies if copy.store == "hf"]
    assert registry and find_differences(hub.model(REPO), registry) == []
    assert hub.model(REPO).folder("main") == files
    assert json.loads(hub.model(REPO).folder("relay/two/model")["relay.json"])["run"] == "two"

    answer = await fleet.relayctl("promote", "two")
    assert "main of me/sums is two's" in answer
    assert json.loads(hub.model(REPO).folder("main")["relay.json"])["run"] == "two"
    await fleet.relayctl("promote", "none", expect=4)
