"""A run keeps the precision of the host that it began on, and holds what it only reads in that type."""

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.trainers import attempts
from tests.trainers.specs import LORA, METHODS, spec

BFLOAT16 = {"precision": "bfloat16"}


def pinned(made: attempts.Attempt) -> dict[str, str]:
    return {event["name"]: event["value"] for event in made.events if event["type"] == "pin"}


def dtypes(folder: Path) -> set[str]:
    """The types of all weights of a result."""
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return found


def run_of(work: Path, method: str, **more: Any) -> dict[str, Any]:
    run = spec(work, method, lora=LORA, **more)
    run["options"] |= {"max_steps": 4}
    return run


def test_the_precision_is_pinned_and_kept(work: Path, tmp_path: Path) -> None:
    """Pinned once, when it is left open; the next attempt computes in it on any host, to the same bits."""
    run = run_of(work, "sft")
    assert pinned(attempts.make(tmp_path / "here", run)) == {"precision": "float32"}
    there = attempts.make(tmp_path / "there", run, pins=BFLOAT16)
    assert (there.code, pinned(there)) == (0, {})
    again = attempts.make(tmp_path / "again", run, pins=BFLOAT16)
    assert again.weights() == there.weights()
    run["options"]["bf16"] = False
    open_no_more = attempts.make(tmp_path / "said", run)
    assert (open_no_more.code, pinned(open_no_more)) == (0, {})


@pytest.mark.slow
@pytest.mark.rotating(1)
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_on_a_base_in_bfloat16(work: Path, tmp_path: Path, method: str) -> None:
    """The base is held in bfloat16; what is trained stays in float32, and a cut leaves no trace."""
    run = run_of(work, method)
    run["lora"] = {**LORA, "modules_to_save": ["score" if method == "reward" else "embed_tokens"]}
    whole = attempts.make(tmp_path / "whole", run, pins=BFLOAT16)
    assert whole.code == 0, (whole.folder / "stderr.log").read_text()
    assert dtypes(whole.folder / "output") == {"F32"}
    resumed = attempts.make(tmp_path / "resumed", run, pins=BFLOAT16, resume=whole.checkpoint(3))
    assert (resumed.code, resumed.weights()) == (0, whole.weights())
    single = attempts.make(tmp_path / "single", run)
    assert single.weights() != whole.weights()


@pytest.mark.slow
def test_all_weights_are_trained_in_float32(work: Path, tmp_path: Path) -> None:
    run = run_of(work, "sft")
    del run["lora"]
    made = attempts.make(tmp_path / "whole", run, pins=BFLOAT16)
    assert (made.code, dtypes(made.folder / "output")) == (0, {"F32"})
