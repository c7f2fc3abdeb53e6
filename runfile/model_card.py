"""The model card and `relay.json`: what is published beside a model's files, for users and for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runfile.models import RunFile, Split

CURVE_FILE = "curve.png"  #: the picture of the losses
MERGED_FOLDER = "merged"  #: where a merged model lies beside its adapter
RECORD_FILE = "relay.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_OUTCOMES = {"SUCCEEDED": "succeeded", "STOPPED": "stopped", "FAILED": "failed", "FAULTED": "lost its host"}
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
class AttemptSummary:
    """One attempt at the run, as the card lists it."""

    number: int
    hosts: Sequence[str]
    resumed_step: int | None  #: None: it started from the beginning
    outcome: str  #: the contract's name of it; any that is not known here is listed as running


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """All that a model card and its `relay.json` are rendered from."""

    run: RunFile
    run_id: str
    attempt: int
    lease: str
    step: int
    final: bool  #: the run's result, not a checkpoint
    library: str  #: that loads the files: `peft`, `transformers`, or empty for a program's own
    files: Collection[str]  #: paths of what is published
    record: Mapping[str, Any] = field(default_factory=dict)  #: what the trainer wrote, see `read_record`
    digest: str = ""  #: of the checkpoint's manifest
    metrics: Mapping[str, float] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)  #: digests of the files uploaded with the run, by path
    pins: Mapping[str, str] = field(default_factory=dict)  #: commits that the run's names were resolved to
    attempts: Sequence[AttemptSummary] = ()
    check: str = ""  #: what the check of the merged model printed


def read_record(folder: Path) -> dict[str, Any]:
    """Return what the trainer wrote about its result; empty where there is no readable record. Blocking.

    A program of the user's may write anything under that name, so nothing is assumed of the values.
    """
    try:
        record = json.loads((folder / RECORD_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def render_texts(facts: CardFacts, repo: str, branch: str) -> dict[str, str]:
    """Return the texts that are published beside the files, by path; `repo` and `branch` are where users load from."""
    return {"README.md": render_card(facts, repo, branch), RECORD_FILE: render_record(facts)}


def render_record(facts: CardFacts) -> str:
    """Return `relay.json`: the trainer's record, and which run, attempt and step the files are of."""
    known: dict[str, Any] = {
        "run": facts.run_id,
        "attempt": facts.attempt,
        "lease": facts.lease,
        "step": facts.step,
        "final": facts.final,
        "method": facts.run.method,
        "checkpoint": facts.digest,
    }
    known = {name: value for name, value in known.items() if value != ""}
    return json.dumps({**facts.record, **known}, indent=2) + "\n"


def render_card(facts: CardFacts, repo: str, branch: str) -> str:
    """Return README.md: the metadata that the Hub reads, then sections for users."""
    parts = [_metadata(facts), f"# {facts.run_id}", _opening(facts), *_sections(facts, repo, branch)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(facts: CardFacts) -> str:
    base, adapter = _base_on_hub(facts), facts.library == "peft"
    datasets = sorted({name for path in _training_paths(facts.run) if (name := _data_set_name(path))})
    lines = [
        f"library_name: {facts.library}" if facts.library else "",
        f"base_model: {json.dumps(base)}" if base else "",
        f"base_model_relation: {'adapter' if adapter else 'finetune'}" if base else "",
        f"datasets: {json.dumps(datasets)}" if datasets else "",
        "pipeline_tag: text-generation" if facts.run.method not in ("command", "reward") else "",
        f"tags: {json.dumps(['relay', facts.run.method, *(['lora'] if adapter else [])])}",
    ]
    return "\n".join(["---", *(line for line in lines if line), "---"])


def _base_on_hub(facts: CardFacts) -> str:
    """Return the base model's name on the Hub; empty for one that is not there."""
    name = _base_name(facts)
    return name if _HUB_NAME.fullmatch(name) else ""


def _base_name(facts: CardFacts) -> str:
    """Return the base model's name as the trainer recorded it, else as the run file names it."""
    recorded, model = facts.record.get("model"), facts.run.model
    if isinstance(recorded, str) and recorded:
        return recorded
    return (model and (model.known_as or model.name_or_path or model.init_from)) or ""


def _training_paths(run: RunFile) -> list[str]:
    return [source.path or "" for source in (run.data.train if run.data else ())]


def _data_set_name(path: str) -> str:
    """Return the name of a data set on the Hub; empty for other paths."""
    name = path.removeprefix("hf://").removeprefix("datasets/")
    return name if path.startswith("hf://") and _HUB_NAME.fullmatch(name) else ""


def _opening(facts: CardFacts) -> str:
    subject = "The result of" if facts.final else f"Step {facts.step} of"
    return (
        f"{subject} a run trained with Relay: method `{facts.run.method}`, step {facts.step}, attempt {facts.attempt}."
    )


def _sections(facts: CardFacts, repo: str, branch: str) -> Iterator[str]:
    if facts.library:
        yield f"## How to load it\n\n```python\n{_loading_code(facts, repo, branch)}\n```"
    if facts.check:
        yield f"The merged model was checked against the unmerged one: {facts.check}."
    if CURVE_FILE in facts.files:
        yield f"## Loss\n\n![The losses over the steps]({CURVE_FILE})"
    if facts.metrics:
        values = [(name, f"{value:.6g}") for name, value in sorted(facts.metrics.items())]
        yield f"## Last evaluation\n\n{_table(('metric', 'value'), values)}"
    if name := _base_name(facts):
        commit = facts.record.get("revision") or facts.pins.get("model")
        yield f"## Base model\n\n`{name}`" + (f" at commit `{commit}`" if commit else "")
    if rows := list(_data_rows(facts)):
        yield f"## Data\n\n{_table(('source', 'content'), rows)}"
    if options := _options(facts.run):
        yield f"## Options\n\n```yaml\n{options}\n```"
    if facts.attempts:
        yield f"## Attempts\n\n{_table(('attempt', 'host', 'resumed from', 'outcome'), _attempt_rows(facts.attempts))}"
    versions = facts.record.get("versions")
    if isinstance(versions, dict) and versions:
        rows = sorted((str(name), str(version)) for name, version in versions.items())
        yield f"## Versions\n\n{_table(('library', 'version'), rows)}"


def _loading_code(facts: CardFacts, repo: str, branch: str) -> str:
    revision = f', revision="{branch}"' if branch != "main" else ""
    ways = [_LOADERS[facts.library].format(repo=repo, revision=revision, subfolder="")]
    if f"{MERGED_FOLDER}/config.json" in facts.files:
        subfolder = f', subfolder="{MERGED_FOLDER}"'
        ways.append(_LOADERS["transformers"].format(repo=repo, revision=revision, subfolder=subfolder))
    return "\n\n# or merged into the base model:\n".join(ways)


def _data_rows(facts: CardFacts) -> Iterator[tuple[str, str]]:
    """Yield each source of rows with what pins its content: a commit, a digest, or the share that was held out."""
    for path in _training_paths(facts.run):
        if commit := facts.pins.get(f"data:{_data_set_name(path)}"):
            yield path, f"commit `{commit}`"
    held_out = facts.run.data.eval if facts.run.data else None
    evaluated = [source.path or "" for source in held_out] if isinstance(held_out, tuple) else []
    paths = {path.removeprefix("./") for path in (*_training_paths(facts.run), *evaluated)}
    yield from ((path, f"`{digest}`") for path, digest in facts.inputs.items() if path in paths)
    if isinstance(held_out, Split):
        yield "evaluation", f"{held_out.split:.3g} of the rows, held out"


def _options(run: RunFile) -> str:
    given = {"options": run.options, "lora": run.lora, "model_init": run.model_init, "seed": run.seed}
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in given.items() if value not in (None, {}))


def _attempt_rows(attempts: Iterable[AttemptSummary]) -> list[tuple[str, str, str, str]]:
    return [
        (
            str(attempt.number),
            ", ".join(attempt.hosts),
            "the beginning" if attempt.resumed_step is None else f"step {attempt.resumed_step}",
            _OUTCOMES.get(attempt.outcome, "running"),
        )
        for attempt in attempts
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
