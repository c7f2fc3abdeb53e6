"""The model card and `relay.json`. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runfile import RunFile, Split

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_LOADERS = {
    "peft": """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{repo}"{revision})
tokenizer = AutoTokenizer.from_pretrained("{repo}"{revision})""",
    "transformers": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}"{revision}{subfolder})
tokenizer = AutoTokenizer.from_pretrained("{repo}"{revision})""",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One attempt at the run."""

    number: int
    host: str
    resumed_step: int | None
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that a card tells."""

    run: RunFile
    run_id: str
    attempt: int
    lease: str
    step: int
    final: bool
    adapter: bool
    merged: bool  #: in a folder of its own beside the adapter
    loads: bool  #: by the Hugging Face libraries
    digest: str  #: of the checkpoint's manifest
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)  #: digests of the data's files
    pins: Mapping[str, str] = field(default_factory=dict)
    attempts: Sequence[Tried] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    curve: bool = False  #: there is a picture of it
    check: str = ""  #: what the check of the merged model said
    base: str = ""  #: the base model, as the trainer calls it; empty: as the run file does


def relay_json(facts: Facts, told: Mapping[str, Any]) -> str:
    """Which run, attempt and step this is; `told` is what the trainer wrote of its result."""
    known = {
        "run": facts.run_id,
        "attempt": facts.attempt,
        "lease": facts.lease,
        "step": facts.step,
        "final": facts.final,
        "method": facts.run.method,
        "checkpoint": facts.digest,
    }
    return json.dumps({**told, **{name: value for name, value in known.items() if value != ""}}, indent=2) + "\n"


def card(facts: Facts, repo: str, branch: str) -> str:
    """README.md: metadata that the Hub reads, and the rest for people."""
    parts = [_metadata(facts), f"# {facts.run_id}", _opening(facts), *_sections(facts, repo, branch)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(facts: Facts) -> str:
    base = _base_name(facts)
    datasets = sorted({name for source in _train(facts.run) if (name := _data_name(source))})
    lines = [
        f"library_name: {_library(facts)}" if facts.loads else "",
        f"base_model: {json.dumps(base)}" if base else "",
        f"base_model_relation: {'adapter' if facts.adapter else 'finetune'}" if base else "",
        f"datasets: {json.dumps(datasets)}" if datasets else "",
        "pipeline_tag: text-generation" if facts.run.method not in ("command", "reward") else "",
        f"tags: {json.dumps(['relay', facts.run.method, *(['lora'] if facts.adapter else [])])}",
    ]
    return "\n".join(["---", *(line for line in lines if line), "---"])


def _library(facts: Facts) -> str:
    return "peft" if facts.adapter else "transformers"


def _base_name(facts: Facts) -> str:
    """The base model's name on the Hub; empty for one that is not there."""
    name = _known_as(facts)
    return name if _HUB_NAME.fullmatch(name) else ""


def _known_as(facts: Facts) -> str:
    model = facts.run.model
    return facts.base or (model and (model.known_as or model.name_or_path or model.init_from)) or ""


def _train(run: RunFile) -> Iterator[str]:
    yield from (source.path or "" for source in (run.data.train if run.data else ()))


def _data_name(path: str) -> str:
    name = path.removeprefix("hf://").removeprefix("datasets/")
    return name if path.startswith("hf://") and _HUB_NAME.fullmatch(name) else ""


def _opening(facts: Facts) -> str:
    when = "The result of" if facts.final else f"Step {facts.step} of"
    return f"{when} a run trained with Relay: method `{facts.run.method}`, step {facts.step}, attempt {facts.attempt}."


def _sections(facts: Facts, repo: str, branch: str) -> Iterator[str]:
    if facts.loads:
        yield f"## How to load it\n\n```python\n{_loading(facts, repo, branch)}\n```"
    if facts.check:
        yield f"The merged model was checked against the unmerged one: {facts.check}."
    if facts.curve:
        yield "## Loss\n\n![The losses over the steps](curve.png)"
    if facts.metrics:
        yield f"## Last evaluation\n\n{_table(('metric', 'value'), _numbers(facts.metrics))}"
    if name := _known_as(facts):
        yield f"## Base model\n\n{_base(facts, name)}"
    if rows := list(_data(facts)):
        yield f"## Data\n\n{_table(('source', 'what it was'), rows)}"
    if options := _options(facts.run):
        yield f"## Options\n\n```yaml\n{options}\n```"
    if facts.attempts:
        tried = [(str(each.number), each.host, _from(each), each.outcome) for each in facts.attempts]
        yield f"## Attempts\n\n{_table(('attempt', 'host', 'went on from', 'ended'), tried)}"
    if facts.versions:
        yield f"## Versions\n\n{_table(('library', 'version'), sorted(facts.versions.items()))}"


def _loading(facts: Facts, repo: str, branch: str) -> str:
    revision = f', revision="{branch}"' if branch != "main" else ""
    ways = [_LOADERS[_library(facts)].format(repo=repo, revision=revision, subfolder="")]
    if facts.merged:
        ways.append(_LOADERS["transformers"].format(repo=repo, revision=revision, subfolder=', subfolder="merged"'))
    return "\n\n# or merged into the base model:\n".join(ways)


def _base(facts: Facts, name: str) -> str:
    pinned = facts.pins.get("model")
    return f"`{name}`" + (f" at commit `{pinned}`" if pinned else "")


def _data(facts: Facts) -> Iterator[tuple[str, str]]:
    for path in _train(facts.run):
        pin = next((commit for name, commit in facts.pins.items() if name == f"data:{_data_name(path)}"), "")
        if pin:
            yield path, f"commit `{pin}`"
    yield from ((name, f"`{digest}`") for name, digest in facts.data.items())
    held_out = facts.run.data.eval if facts.run.data else None
    if isinstance(held_out, Split):
        yield "evaluation", f"{held_out.split:.3g} of the rows, held out"


def _options(run: RunFile) -> str:
    given = {"options": run.options, "lora": run.lora, "model_init": run.model_init, "seed": run.seed}
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in given.items() if value not in (None, {}))


def _from(tried: Tried) -> str:
    return "the beginning" if tried.resumed_step is None else f"step {tried.resumed_step}"


def _numbers(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(name, f"{value:.6g}") for name, value in sorted(metrics.items())]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
