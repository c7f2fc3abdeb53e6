"""What people see of runs and hosts. Pure: messages and the time in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from google.protobuf.timestamp_pb2 import Timestamp

from relay.v1 import fleet_pb2
from relay.v1 import runs_pb2 as pb
from relayctl.client.client import short
from relayctl.output.format import ago, block, count, number, printable, size, span, table
from runfile import RunFile, Split, format_duration
from runfile.models import KeepSection
from runfile.units import Every

_EVENT_MARKS = {"warning": "! ", "error": "!! "}
_QUOTED = 1000  #: characters of a text that is shown in part
_SHOWN_FIRST = ("train_loss", "loss", "reward", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")


def moment(stamp: Timestamp) -> datetime:
    """The time in UTC."""
    return stamp.ToDatetime(tzinfo=UTC)


def state_name(run: pb.Run) -> str:
    """`queued`, `running` …, and what is on its way: `running, pausing`."""
    name = pb.Run.State.Name(run.state).lower()
    coming = {pb.Run.PAUSE: "pausing", pb.Run.CANCEL: "cancelling"}.get(run.wanted)
    return f"{name}, {coming}" if coming and run.state in (pb.Run.RUNNING, pb.Run.QUEUED) else name


def state_cell(run: pb.Run) -> str:
    """The state with its reason in the cell."""
    name, why = state_name(run), printable(run.reason or run.error.message)
    if why.startswith(name):  # `cancelled by an operator` says both
        return why
    return f"{name}: {why}" if why else name


def standing(run: pb.Run) -> str:
    """The state as a sentence says it: `is queued: …`, `succeeded`, `failed: …`, `was cancelled`."""
    verb = {pb.Run.SUCCEEDED: "", pb.Run.FAILED: "", pb.Run.CANCELLED: "was "}.get(run.state, "is ")
    return verb + state_cell(run)


def progress_cell(progress: pb.Progress) -> str:
    """`120/400 30%`, or the step alone where the end is not known."""
    if progress.total > 0:
        return f"{progress.step}/{progress.total} {100 * progress.step // progress.total}%"
    return str(progress.step) if progress.step else ""


def hosts_of(attempt: pb.Attempt) -> str:
    """The agents an attempt runs on."""
    return ", ".join(short(place.agent) for place in attempt.places)


def runs_table(runs: Sequence[pb.Run], now: datetime, *, wide: bool = False, width: int | None = None) -> str:
    """One run a row, the reason last so that only it is cut."""
    headers = ["NAME", "PROGRESS", "HOST", "TRY", "AGE"]
    extra = ["PRIORITY", "LABELS", "METRICS"] if wide else []
    rows = []
    for run in runs:
        cells = [short(run.name), progress_cell(run.progress), hosts_of(run.attempt), str(run.attempts or "")]
        cells.append(span((now - moment(run.create_time)).total_seconds()))
        if wide:
            cells += [str(run.priority), _pairs(run.labels), metrics_cell(run.progress.metrics)]
        rows.append([*cells, state_cell(run)])
    return table([*headers, *extra, "STATE"], rows, width)


def _pairs(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels))


def metrics_cell(metrics: Mapping[str, float], most: int = 4) -> str:
    """The metrics that people look at first: `train_loss 0.45  learning_rate 5.00e-05`."""
    names = [name for name in _SHOWN_FIRST if name in metrics]
    names += [name for name in sorted(metrics) if name not in names]
    return "  ".join(f"{printable(name)} {number(metrics[name])}" for name in names[:most])


def run_block(run: pb.Run, attempts: Sequence[pb.Attempt], now: datetime) -> str:
    """One run for people."""
    head = run.head
    ended = run.HasField("end_time")
    took = (moment(run.end_time) if ended else now) - moment(run.create_time)
    name = short(run.name)
    return block(
        [
            ("run", name),
            ("state", state_cell(run)),
            ("progress", "   ".join(filter(None, [progress_cell(run.progress), metrics_cell(run.progress.metrics)]))),
            ("submitted", f"{ago(moment(run.create_time), now)}{_by(run.provenance)}"),
            ("took" if ended else "so far", span(took.total_seconds())),
            ("labels", _pairs(run.labels)),
            ("pinned", ", ".join(f"{key} {value}" for key, value in sorted(run.pins.items()))),
            ("head", checkpoint_words(head) if run.HasField("head") else ""),
            ("output", output_words(run.output, name) if run.HasField("output") else ""),
            ("attempts", "\n".join(attempt_words(attempt, now) for attempt in attempts)),
        ]
    )


def _by(provenance: pb.Provenance) -> str:
    where = f" by {printable(provenance.submitter)}" if provenance.submitter else ""
    if provenance.commit:
        where += f", commit {provenance.commit[:10]}{' with changes' if provenance.diff_digest else ''}"
    return where


def checkpoint_words(checkpoint: pb.Checkpoint) -> str:
    """`step 120 (attempt 1), 12.0 MiB on relay, host-a`."""
    bytes_ = sum(part.size for part in checkpoint.parts)
    places = stores_of(checkpoint)
    on = f" on {', '.join(places)}" if places else ""
    return f"step {checkpoint.step} (attempt {checkpoint.attempt}), {size(bytes_)}{on}"


def stores_of(checkpoint: pb.Checkpoint) -> list[str]:
    """Where copies of a checkpoint are, and are to stay: `relay`, or the host's name."""
    copies = [copy for part in checkpoint.parts for copy in part.copies if not copy.HasField("remove_time")]
    return list(dict.fromkeys(short(copy.uri) if copy.store == "host" else copy.store for copy in copies))


def output_words(output: pb.Output, run: str) -> str:
    """What the run left, and how to get it."""
    return f"{count(output.files, 'file')}, {size(output.size)}; fetch it with: relayctl pull {run} DIR"


def attempt_words(attempt: pb.Attempt, now: datetime) -> str:
    """One attempt on one line (more where checkpoints were refused)."""
    begin = f"from step {attempt.resumed_step}" if attempt.resumed_from else "from the start"
    end = moment(attempt.end_time) if attempt.HasField("end_time") else now
    took = span((end - moment(attempt.grant_time)).total_seconds())
    line = f"{attempt.number}  {hosts_of(attempt) or 'elsewhere'}  {begin}  {took}  {_attempt_state(attempt)}"
    skipped = [f"   refused step {s.step}: {printable(s.reason)}" for s in attempt.skipped]
    return "\n".join([line, *skipped])


def _attempt_state(attempt: pb.Attempt) -> str:
    ended = attempt.state == pb.Attempt.ENDED
    name = pb.Attempt.Outcome.Name(attempt.outcome) if ended else pb.Attempt.State.Name(attempt.state)
    why = printable(attempt.reason or attempt.error.message)
    return f"{name.lower()}: {why}" if why else name.lower()


def why_text(run: pb.Run, attempts: Sequence[pb.Attempt], agents: Sequence[fleet_pb2.Agent], now: datetime) -> str:
    """Why a run is where it is, at length."""
    parts = [f"{short(run.name)} {standing(run)}"]
    if run.failures or run.faults:
        parts.append(f"failures of its own: {run.failures}; faults of the infrastructure: {run.faults}")
    if run.HasField("eligible_time") and moment(run.eligible_time) > now:
        parts.append(f"not granted for another {span((moment(run.eligible_time) - now).total_seconds())} (back-off)")
    if attempts:
        parts += ["attempts:", *(f"  {line}" for a in attempts for line in attempt_words(a, now).splitlines())]
    if error := error_text(run.error.message):
        parts += ["the error:", *(f"  {line}" for line in error)]
    if run.state == pb.Run.QUEUED:
        parts += ["hosts:", *(f"  {line}" for line in agents_table(agents, now).splitlines())]
    return "\n".join(parts)


def error_text(message: str) -> list[str]:
    """The lines of an error that has more than the one shown already."""
    lines = [printable(line) for line in message.splitlines()]
    return lines if len(lines) > 1 else []


def agents_table(
    agents: Sequence[fleet_pb2.Agent], now: datetime, *, wide: bool = False, width: int | None = None
) -> str:
    """One host a row."""
    headers = ["NAME", "HARDWARE", "FREE", "RUNS", "SEEN"]
    extra = ["LABELS", "VERSIONS"] if wide else []
    rows = []
    for agent in agents:
        runs = [lease.split("/")[1] for lease in agent.leases if lease.count("/") >= 3]
        cells = [short(agent.name), hardware(agent.capability), str(len(agent.free_slots)), ", ".join(runs)]
        cells.append(ago(moment(agent.heartbeat_time), now) if agent.HasField("heartbeat_time") else "never")
        if wide:
            cells += [_pairs(agent.labels), _pairs(agent.capability.versions)]
        name = fleet_pb2.Agent.State.Name(agent.state).lower().replace("_", " ")
        rows.append([*cells, name if agent.reason in ("", f"is {name}") else f"{name}: {printable(agent.reason)}"])
    return table([*headers, *extra, "STATE"], rows, width)


def hardware(capability: fleet_pb2.Capability) -> str:
    """`2 x NVIDIA H100 80GB HBM3`, or the CPUs of a host without GPUs."""
    if not capability.gpus:
        return f"{count(capability.cpus, 'CPU')}, {size(capability.memory_bytes)}, {count(capability.slots, 'slot')}"
    models: dict[str, int] = {}
    for gpu in capability.gpus:
        models[gpu.model] = models.get(gpu.model, 0) + 1
    return ", ".join(f"{amount} x {model}" for model, amount in models.items())


def checkpoints_table(
    checkpoints: Sequence[pb.Checkpoint], now: datetime, *, wide: bool = False, width: int | None = None
) -> str:
    """One checkpoint a row, why it stays or goes last, so that only that is cut."""
    headers = ["STEP", "TRY", "SIZE", "AGE", "ON", "METRICS"] + (["FILES", "NAME"] if wide else [])
    rows = []
    for checkpoint in checkpoints:
        cells = [str(checkpoint.step), str(checkpoint.attempt), size(sum(p.size for p in checkpoint.parts))]
        cells += [span((now - moment(checkpoint.create_time)).total_seconds()), ", ".join(stores_of(checkpoint))]
        cells += [metrics_cell(checkpoint.metrics)]
        cells += [str(sum(p.files for p in checkpoint.parts)), short(checkpoint.name)] if wide else []
        rows.append([*cells, standing_of(checkpoint)])
    return table([*headers, "KEPT BECAUSE"], rows, width)


def standing_of(checkpoint: pb.Checkpoint) -> str:
    """Why a checkpoint stays, or that it goes, and why."""
    if checkpoint.HasField("remove_time"):
        left = any(part.copies for part in checkpoint.parts)
        return f"{'going' if left else 'gone'}: {checkpoint.remove_reason}"
    if checkpoint.remove_reason:
        return f"goes next: {checkpoint.remove_reason}"
    pin = f"pinned: {printable(checkpoint.pin_reason)}" if checkpoint.pin_reason else "pinned"
    reasons = [pin if reason == "pinned" else reason for reason in checkpoint.keep_reasons]
    return ", ".join([*(["off the curve"] if checkpoint.superseded else []), *reasons])


@dataclass(frozen=True, slots=True)
class Series:
    """One metric's curve: points in order, and the steps at which a later attempt took over."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    restarts: Sequence[int]


def series(stretches: Iterable[pb.ReadMetricsResponse]) -> list[Series]:
    """The stretches of a run's one curve, put together by metric in the order of their names."""
    by_name: dict[str, list[pb.ReadMetricsResponse]] = {}
    for stretch in stretches:
        if not stretch.superseded and stretch.steps:
            by_name.setdefault(stretch.metric, []).append(stretch)
    return [_joined(name, by_name[name]) for name in sorted(by_name)]


def _joined(name: str, parts: Sequence[pb.ReadMetricsResponse]) -> Series:
    ordered = sorted(parts, key=lambda part: part.steps[0])
    restarts = [b.steps[0] for a, b in pairwise(ordered) if a.lease != b.lease]
    steps = [step for part in ordered for step in part.steps]
    return Series(name, steps, [value for part in ordered for value in part.values], restarts)


def metrics_table(curves: Sequence[Series], width: int | None = None) -> str:
    """The newest value of each metric, and its range."""
    rows = []
    for curve in curves:
        finite = [value for value in curve.values if value == value]
        low, high = (number(min(finite)), number(max(finite))) if finite else ("", "")
        last = number(curve.values[-1])
        rows.append([curve.name, str(curve.steps[-1]), last, low, high, str(len(curve.steps))])
    return table(["METRIC", "STEP", "LAST", "MIN", "MAX", "POINTS"], rows, width)


def sample(made: pb.Sample, *, whole: bool) -> str:
    """A completion below its prompt, long ones cut unless they are wanted whole."""
    rewards = "".join(f"  {printable(name)} {number(made.rewards[name])}" for name in sorted(made.rewards))
    prompt, completion = (_quoted(text, whole) for text in (made.prompt, made.completion))
    return "\n".join([f"step {made.step}  {made.kind}{rewards}", f"    {prompt}", f"  → {completion}"])


def _quoted(text: str, whole: bool) -> str:
    """Lines below each other, the end of them where there are too many."""
    shown = text if whole or len(text) <= _QUOTED else "…" + text[-_QUOTED:]
    return "\n    ".join(printable(line) for line in shown.splitlines()) or "(nothing)"


def event_line(event: pb.RunEvent) -> str:
    """What happened, on one line: `10:48:03  granted to host-a (attempt 1)`."""
    text = printable(event.text) or pb.RunEvent.Kind.Name(event.kind).lower()
    clock = moment(event.time).astimezone().strftime("%H:%M:%S")
    return f"{clock}  {_EVENT_MARKS.get(event.level, '')}{text}"


def progress_line(progress: pb.Progress) -> str:
    """How far training is, on one line."""
    return "   ".join(filter(None, [f"step {progress_cell(progress)}", metrics_cell(progress.metrics)]))


def end_line(run: pb.Run) -> str:
    """How a run ended, with what to do next."""
    name = short(run.name)
    if run.state == pb.Run.SUCCEEDED and run.HasField("output"):
        return f"{name} succeeded; {output_words(run.output, name)}"
    if run.state == pb.Run.FAILED:
        return f"{name} {standing(run)}; more with: relayctl why {name}, relayctl logs {name}"
    return f"{name} {standing(run)}"


def spec_block(run: RunFile, source: str) -> list[tuple[str, str]]:
    """The resolved run in a few lines, for a plan."""
    every = run.checkpoint.every
    life = run.lifecycle
    return [
        ("run", f"{run.name or '(named when submitted)'}, {run.method}, from {source}"),
        ("command", " ".join(run.command or ())),
        ("model", _model_words(run)),
        ("data", _data_words(run)),
        ("options", ", ".join(f"{key} {value}" for key, value in sorted(run.options.items()))),
        ("resources", _resource_words(run)),
        ("checkpoint", f"every {_interval(every)}, {keep_words(run.checkpoint.keep)} kept"),
        ("lifecycle", f"at most {count(life.max_attempts, 'attempt')}, on disconnect {life.on_disconnect}"),
    ]


def _interval(every: Every) -> str:
    return str(every) if every.steps else _short_duration(every.seconds or 0)


def keep_words(keep: KeepSection) -> str:
    """What of a run's checkpoints is kept: `the last 3, the best 1 by eval_loss`."""
    words = [f"the last {keep.last}"]
    words += [f"the best {keep.best} by {keep.metric}"] if keep.best else []
    words += [f"one every {_interval(keep.every)}"] if keep.every else []
    words += [f"none older than {_short_duration(keep.max_age)}"] if keep.max_age else []
    words += [f"at most {size(keep.max_total)}"] if keep.max_total else []
    return ", ".join(words)


def _short_duration(seconds: float) -> str:
    return span(seconds) if seconds >= 60 and seconds % 60 == 0 else format_duration(seconds)


def _model_words(run: RunFile) -> str:
    if run.model is None:
        return ""
    name = run.model.name_or_path or run.model.init_from or ""
    trained = f", LoRA r={run.lora.get('r', 8)}" if run.lora is not None else ", all weights"
    revision = f" @ {run.model.revision}" if run.model.revision else ""
    return f"{name}{revision}{'' if run.method == 'evaluate' else trained}"


def _data_words(run: RunFile) -> str:
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


def _resource_words(run: RunFile) -> str:
    need = run.resources
    freely = "any host, a GPU of it if it has some" if need.gpus_per_node else "any host, one without GPUs first"
    words = [count(need.gpus_per_node, "GPU") if need.require_cuda else freely]
    words += [f"≥ {need.vram_gib:g} GiB of VRAM each"] if need.vram_gib else []
    words += [f"≥ {need.ram_gib:g} GiB of RAM"] if need.ram_gib else []
    words += [f"labels {_pairs(need.labels)}"] if need.labels else []
    words += [f"only on {', '.join(need.allowed_hosts)}"] if need.allowed_hosts else []
    return ", ".join(words)
