"""The plan that `submit` and `import` show before anything is created: the run file with its defaults.

It includes what the run puts on the Hugging Face Hub and about how much that is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from relay.v1 import runs_pb2 as pb
from relayctl.client.submission import PreparedSubmission
from relayctl.output.format import (
    format_block,
    format_bytes,
    format_count,
    format_pairs,
    format_span,
    make_printable,
)
from runfile import INIT_FROM, RunFile, Split, format_duration, presets
from runfile.models import KeepSection
from runfile.units import Every

PLACEMENT_UNKNOWN = "not known: the coordinator does not answer"
_DAY = 86400.0  #: seconds
_BILLIONS = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z0-9])", re.IGNORECASE)
_HALF = ("bfloat16", "float16", "bf16", "fp16")
_STATES = 3  #: tensors for each weight in a trainer's state: the weight and Adam's two moments


def format_run_plan(prepared: PreparedSubmission, validated: pb.CreateRunResponse | None) -> str:
    """Format the plan of a submission; without the coordinator's answer the placement is not known."""
    entries = list_plan_entries(prepared.runfile, str(prepared.path))
    entries.append(("hub", describe_hub(prepared.runfile, _measure_weights(prepared))))
    entries += [
        ("preset", line.removeprefix("preset ")) for line in presets.describe_presets(prepared.runfile.to_dict())
    ]
    entries.append(("uploads", describe_uploads(prepared)))
    if validated is not None and (source := validated.run.pins.get("init_from")):
        entries.append(("starts from", _describe_initial_weights(source, validated.run.inputs)))
    placement = PLACEMENT_UNKNOWN if validated is None else make_printable(validated.placement)
    return format_block([*entries, ("placement", placement)])


def describe_uploads(prepared: PreparedSubmission) -> str:
    """Return which files are uploaded with a run: `2 files, 1.2 MiB: train.py, data.jsonl`."""
    if not prepared.files:
        return "nothing"
    names = [file.path for file in prepared.files[:3]] + (["…"] if len(prepared.files) > 3 else [])
    return f"{format_count(len(prepared.files), 'file')}, {format_bytes(prepared.size)}: {', '.join(names)}"


def _measure_weights(prepared: PreparedSubmission) -> int | None:
    """Return the bytes of the weights that are uploaded, or None when the model is elsewhere."""
    sizes = [file.source.stat().st_size for file in prepared.files if file.path.endswith(".safetensors")]
    return sum(sizes) if sizes else None


def _describe_initial_weights(source: str, inputs: Sequence[pb.Input]) -> str:
    """Describe the weights of another run, which the coordinator has."""
    files = [file for file in inputs if file.path.startswith(f"{INIT_FROM}/")]
    total = format_bytes(sum(file.size for file in files))
    return f"{source.partition(' ')[0]}: {format_count(len(files), 'file')}, {total}"


def list_plan_entries(run: RunFile, source: str) -> list[tuple[str, str]]:
    """Return the resolved run as the entries of a block; `source` names the run file."""
    every = run.checkpoint.every
    life = run.lifecycle
    return [
        ("run", f"{run.name or '(named when submitted)'}, {run.method}, from {source}"),
        ("command", " ".join(run.command or ())),
        ("model", _describe_model(run)),
        ("data", _describe_data(run)),
        ("options", ", ".join(f"{key} {value}" for key, value in sorted(run.options.items()))),
        ("resources", _describe_resources(run)),
        ("checkpoint", f"every {_describe_interval(every)}, {describe_keep(run.checkpoint.keep)} kept"),
        ("lifecycle", f"at most {format_count(life.max_attempts, 'attempt')}, on disconnect {life.on_disconnect}"),
    ]


def describe_keep(keep: KeepSection) -> str:
    """Describe which of a run's checkpoints are kept: `the last 3, the best 1 by eval_loss`."""
    words = [f"the last {keep.last}"]
    words += [f"the best {keep.best} by {keep.metric}"] if keep.best else []
    words += [f"one every {_describe_interval(keep.every)}"] if keep.every else []
    words += [f"none older than {_describe_duration(keep.max_age)}"] if keep.max_age else []
    words += [f"at most {format_bytes(keep.max_total)}"] if keep.max_total else []
    return ", ".join(words)


def _describe_interval(every: Every) -> str:
    return str(every) if every.seconds is None else _describe_duration(every.seconds)


def _describe_duration(seconds: float) -> str:
    return format_span(seconds) if seconds >= 60 and seconds % 60 == 0 else format_duration(seconds)


def _describe_model(run: RunFile) -> str:
    if run.model is None:
        return ""
    name = run.model.name_or_path or run.model.init_from or ""
    trained = f", LoRA r={run.lora.get('r', 8)}" if run.lora is not None else ", all weights"
    revision = f" @ {run.model.revision}" if run.model.revision else ""
    return f"{name}{revision}{'' if run.method == 'evaluate' else trained}"


def _describe_data(run: RunFile) -> str:
    if run.data is None:
        return ""
    train = ", ".join(source.path or source.reasoning_gym or "" for source in run.data.train)
    match run.data.eval:
        case None:
            return train
        case Split(split=part):
            return f"{train}; {part:.3g} of it held out"
        case sources:
            return f"{train}; evaluated on {', '.join(source.path or source.reasoning_gym or '' for source in sources)}"


def _describe_resources(run: RunFile) -> str:
    need = run.resources
    no_gpu_needed = "any host, a GPU of it if it has some" if need.gpus_per_node else "any host, one without GPUs first"
    words = [format_count(need.gpus_per_node, "GPU") if need.require_cuda else no_gpu_needed]
    words += [f"≥ {need.vram_gib:g} GiB of VRAM each"] if need.vram_gib else []
    words += [f"≥ {need.ram_gib:g} GiB of RAM"] if need.ram_gib else []
    words += [f"labels {format_pairs(need.labels)}"] if need.labels else []
    words += [f"only on {', '.join(need.allowed_hosts)}"] if need.allowed_hosts else []
    return ", ".join(words)


def describe_hub(run: RunFile, weights: int | None) -> str:
    """Describe what goes to the Hub, how often and how much; `weights` is the size in bytes of a local model's."""
    hub = run.hub
    if hub is None:
        return ""
    if hub.dry_run:
        return f"{hub.repo}, only rehearsed"
    visibility = "private" if hub.private else "public"
    words = f"{hub.repo}, the newest model every {_describe_interval(hub.every)}, {visibility} where it is new"
    return f"{words}; {_describe_state(run, weights)}" if hub.state else words


def _describe_state(run: RunFile, weights: int | None) -> str:
    save = estimate_state_size(run, weights)
    if save is None:
        return "the whole state of each checkpoint; the run reports its size before it uploads the first"
    every = run.checkpoint.every.seconds
    day = f", {format_bytes(int(save * _DAY / every))} a day" if every else ""
    return f"the whole state of each checkpoint: about {format_bytes(save)} a save{day}"


def estimate_state_size(run: RunFile, weights: int | None) -> int | None:
    """Estimate the bytes of a trainer's state when all weights are trained; None when there is nothing to go by."""
    if run.model is None or run.lora is not None:
        return None
    if weights is not None:
        return weights * _STATES
    name = (run.model.name_or_path or "").rpartition("/")[2]
    match = _BILLIONS.search(name.replace("-", " ").replace("_", " "))
    if match is None:
        return None
    parameters = float(match[1]) * (1e9 if match[2].lower() == "b" else 1e6)
    return int(parameters * (2 if run.model_init.get("dtype") in _HALF else 4) * _STATES)
