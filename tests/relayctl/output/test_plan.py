"""What a plan says of the Hub."""

from typing import Any

import pytest

from relayctl.output.plan import hub_words, state_size
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
    assert state_size(run(name, **more), weights) == (None if size is None else int(size))


def test_what_is_said() -> None:
    assert hub_words(run(), None) == ""
    assert hub_words(run(hub={"repo": "me/x", "dry_run": True}), None) == "me/x, only rehearsed"
    said = hub_words(run(hub={"repo": "me/x", "state": True}), None)
    assert said.startswith("me/x, the newest model every 4 h 0 min, private where it is new; ")
    assert said.endswith("about 89.4 GiB a save, 12.6 TiB a day")
    assert "before it sends the first" in hub_words(run("org/x", hub={"repo": "me/x", "state": True}), None)
