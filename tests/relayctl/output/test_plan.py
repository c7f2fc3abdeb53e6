"""What a plan says of the run file and of the Hub."""

from typing import Any

import pytest

from relayctl.output.format import format_block
from relayctl.output.plan import describe_hub, estimate_state_size, list_plan_entries
from runfile import parse_run_file

GB = 1e9


def run(name: str = "org/Llama-3-8B", **more: Any) -> Any:
    return parse_run_file(
        {"version": "relay/v1", "method": "sft", "model": {"name_or_path": name}, "data": {"train": "hf://a/b"}, **more}
    )


@pytest.mark.parametrize(
    ("name", "more", "weights", "size"),
    [
        ("org/Llama-3-8B", {}, None, 96 * GB),
        ("org/Llama-3-8B-Instruct", {"model_init": {"dtype": "bfloat16"}}, None, 48 * GB),
        ("org/SmolLM2-135M", {}, None, 1.62 * GB),
        ("org/model-1.5b", {}, None, 18 * GB),
        ("org/nameless", {}, None, None),
        ("./model", {}, int(GB), 3 * GB),
        ("org/Llama-3-8B", {"lora": {"r": 8}}, None, None),
    ],
)
def test_the_size_of_a_save(name: str, more: dict[str, Any], weights: int | None, size: float | None) -> None:
    assert estimate_state_size(run(name, **more), weights) == (None if size is None else int(size))


def test_what_is_said() -> None:
    assert describe_hub(run(), None) == ""
    assert describe_hub(run(hub={"repo": "me/x", "dry_run": True}), None) == "me/x, only rehearsed"
    said = describe_hub(run(hub={"repo": "me/x", "state": True}), None)
    assert said.startswith("me/x, the newest model every 4 h 0 min, private where it is new; ")
    assert said.endswith("about 89.4 GiB a save, 12.6 TiB a day")
    assert "before it uploads the first" in describe_hub(run("org/x", hub={"repo": "me/x", "state": True}), None)


def test_what_is_kept_is_said_in_the_plan() -> None:
    keep = {"last": 2, "best": 1, "metric": "eval_loss", "every": "500 steps", "max_age": "7d", "max_total": "1GiB"}
    run = parse_run_file({"method": "command", "command": ["true"], "checkpoint": {"keep": keep}})
    words = dict(list_plan_entries(run, "run.yaml"))["checkpoint"]
    assert words == (
        "every 10 min, the last 2, the best 1 by eval_loss, one every 500 steps, none older than 7 d 0 h, "
        "at most 1.0 GiB kept"
    )


def test_a_plan_says_what_was_filled_in() -> None:
    run = parse_run_file(
        {
            "method": "sft",
            "name": "sums",
            "model": {"name_or_path": "o/m", "revision": "main"},
            "lora": {"r": 16},
            "data": {"train": "a.jsonl", "eval": {"split": 0.02}},
            "resources": {"gpus_per_node": 2, "vram_gib": 24},
        }
    )
    assert format_block(list_plan_entries(run, "x.yaml")).splitlines() == [
        "run          sums, sft, from x.yaml",
        "model        o/m @ main, LoRA r=16",
        "data         a.jsonl; 0.02 of it held out",
        "resources    2 GPUs, ≥ 24 GiB of VRAM each",
        "checkpoint   every 10 min, the last 3 kept",
        "lifecycle    at most 3 attempts, on disconnect continue",
    ]
