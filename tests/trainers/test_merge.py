"""An adapter merged into its base model gives the same logits, and is not changed."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

RUN = {
    "version": "relay/v1",
    "method": "sft",
    "lora": {"r": 4, "target_modules": "all-linear"},
    "data": {"train": [{"path": "rows.jsonl"}]},
}

#: An adapter that changes something: its second half is zero until it is trained.
ADAPTER = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
base, folder = sys.argv[1:]
torch.manual_seed(1)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules="all-linear"))
for name, weight in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weight, std=0.1)
model.save_pretrained(folder)
AutoTokenizer.from_pretrained(base).save_pretrained(folder)
"""

LOGITS = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, merged = sys.argv[1:]
ids = torch.arange(10, 40)[None]
with torch.no_grad():
    plain = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
    ours = AutoModelForCausalLM.from_pretrained(merged).eval()(ids).logits
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()(ids).logits
assert (ours - theirs).abs().max() < 1e-4, (ours - theirs).abs().max()
assert (ours - plain).abs().max() > 1e-2
"""


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=150)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A run's working folder with an adapter in it."""
    (tmp_path / "model").symlink_to(tiny_model)
    tiny.make_rows(tmp_path / "rows.jsonl", count=6)
    (tmp_path / "run.json").write_text(json.dumps({**RUN, "model": {"name_or_path": "./model"}}))
    done = python("-c", ADAPTER, "model", "adapter", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_a_merged_model_gives_the_logits_of_the_unmerged_one(folder: Path) -> None:
    before = digests(folder / "adapter")
    done = python("-m", "trainers.merge", "adapter", "merged", "--run-file", "run.json", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "largest difference of a logit" in done.stdout and "on 4 rows" in done.stdout
    checked = python("-c", LOGITS, "model", "adapter", "merged", cwd=folder)
    assert checked.returncode == 0, checked.stderr
    assert digests(folder / "adapter") == before
    assert (folder / "merged" / "tokenizer.json").is_file() and not (folder / "merged" / "adapter_config.json").exists()

    over = python("-m", "trainers.merge", "adapter", "adapter", "--run-file", "run.json", cwd=folder)
    assert over.returncode == 1 and "must not be overwritten" in over.stdout
    assert digests(folder / "adapter") == before


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_a_reward_models_adapter_is_merged_with_its_head(folder: Path) -> None:
    """The number that it gives is compared, and its rows are preferences."""
    tiny.make_rows(folder / "rows.jsonl", count=6, kind="preference")
    (folder / "run.json").write_text(json.dumps({**RUN, "method": "reward", "model": {"name_or_path": "./model"}}))
    script = ADAPTER.replace("AutoModelForCausalLM", "AutoModelForSequenceClassification")
    script = script.replace("from_pretrained(base), Lora", "from_pretrained(base, num_labels=1), Lora")
    script = script.replace("LoraConfig(r=4, target", 'LoraConfig(task_type="SEQ_CLS", r=4, target')
    made = python("-c", script, "model", "scoring", cwd=folder)
    assert made.returncode == 0, made.stderr
    done = python("-m", "trainers.merge", "scoring", "merged", "--run-file", "run.json", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 4 rows" in done.stdout
    config = json.loads((folder / "merged" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"] and len(config["id2label"]) == 1


def test_a_model_that_is_another_is_refused() -> None:
    check = """
import torch
from trainers.merge import MergeMismatch, compare_logits
one = [torch.zeros(2, 3)]
print(compare_logits(one, [torch.full((2, 3), 1e-6)], torch.float32))
for wrong in (0.5, float("nan")):
    try:
        compare_logits(one, [torch.full((2, 3), wrong)], torch.float32)
    except MergeMismatch:
        print("refused")
"""
    done = python("-c", check, cwd=Path.cwd())
    assert done.stdout.count("refused") == 2, done.stderr


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
