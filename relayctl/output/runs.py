"""Texts about runs, their attempts and checkpoints that several commands print. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime

from google.rpc import error_details_pb2, status_pb2

from relay.attempt_errors import BY_REASON
from relay.errors import DOMAIN
from relay.v1 import runs_pb2 as pb
from relayctl.client.client import shorten_name
from relayctl.output.format import (
    format_bytes,
    format_count,
    format_number,
    format_span,
    make_printable,
    to_datetime,
)

#: The metrics that users look at first.
_SHOWN_FIRST = ("train_loss", "loss", "reward", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")


def format_state(run: pb.Run) -> str:
    """Return a run's state with its reason: `queued: needs 2 GPUs`, `running, pausing`."""
    name, why = _name_state(run), make_printable(run.reason or run.error.message)
    if why.startswith(name):  # `cancelled by a user` says both
        return why
    return f"{name}: {why}" if why else name


def _name_state(run: pb.Run) -> str:
    name = pb.Run.State.Name(run.state).lower()
    requested = {pb.Run.PAUSE: "pausing", pb.Run.CANCEL: "cancelling"}.get(run.wanted)
    return f"{name}, {requested}" if requested and run.state in (pb.Run.RUNNING, pb.Run.QUEUED) else name


def describe_state(run: pb.Run) -> str:
    """Return a run's state as a predicate: `is queued: …`, `succeeded`, `failed: …`, `was cancelled`."""
    verb = {pb.Run.SUCCEEDED: "", pb.Run.FAILED: "", pb.Run.CANCELLED: "was "}.get(run.state, "is ")
    return verb + format_state(run)


def format_progress(progress: pb.Progress) -> str:
    """Return how far training is: `120/400 30%`, or the step alone when the last step is not known."""
    if progress.total > 0:
        return f"{progress.step}/{progress.total} {100 * progress.step // progress.total}%"
    return str(progress.step) if progress.step else ""


def format_metrics(metrics: Mapping[str, float], most: int = 4) -> str:
    """Return the metrics that users look at first: `train_loss 0.45  learning_rate 5.00e-05`."""
    names = [name for name in _SHOWN_FIRST if name in metrics]
    names += [name for name in sorted(metrics) if name not in names]
    return "  ".join(f"{make_printable(name)} {format_number(metrics[name])}" for name in names[:most])


def format_hosts(attempt: pb.Attempt) -> str:
    """Return the agents that an attempt runs on."""
    return ", ".join(shorten_name(place.agent) for place in attempt.places)


def format_stores(checkpoint: pb.Checkpoint) -> str:
    """Return where copies of a checkpoint are kept: `relay`, `s3` or the name of a host."""
    copies = [copy for part in checkpoint.parts for copy in part.copies if not copy.HasField("remove_time")]
    return ", ".join(dict.fromkeys(shorten_name(copy.uri) if copy.store == "host" else copy.store for copy in copies))


def describe_output(output: pb.Output, run: str) -> str:
    """Return what a run's result consists of, and the command that fetches it."""
    return f"{format_count(output.files, 'file')}, {format_bytes(output.size)}; fetch it with: relayctl pull {run} DIR"


def describe_attempt(attempt: pb.Attempt, now: datetime) -> str:
    """Describe an attempt on one line, and each checkpoint that it refused to resume from, and why it does not go on
    exactly, on another.
    """
    start = f"from step {attempt.resumed_step}{_format_fidelity(attempt)}" if attempt.resumed_from else "from the start"
    end = to_datetime(attempt.end_time) if attempt.HasField("end_time") else now
    duration = format_span((end - to_datetime(attempt.grant_time)).total_seconds())
    hosts = format_hosts(attempt) or "elsewhere"
    line = f"{attempt.number}  {hosts}  {start}  {duration}  {_format_attempt_state(attempt)}"
    reasons = [f"   {make_printable(reason)}" for reason in attempt.fidelity_reasons]
    skipped = [f"   skipped step {s.step}: {make_printable(s.reason)}" for s in attempt.skipped]
    return "\n".join([line, *skipped, *reasons])


def _format_fidelity(attempt: pb.Attempt) -> str:
    """Return how faithfully an attempt goes on, ` (exact)`; empty where its trainer does not say."""
    return f" ({pb.Attempt.Fidelity.Name(attempt.fidelity).lower()})" if attempt.fidelity else ""


def _format_attempt_state(attempt: pb.Attempt) -> str:
    ended = attempt.state == pb.Attempt.ENDED
    name = pb.Attempt.Outcome.Name(attempt.outcome) if ended else pb.Attempt.State.Name(attempt.state)
    cause, why = _read_error_reason(attempt.error), make_printable(attempt.reason or attempt.error.message)
    shown = f"{name.lower()} ({cause})" if cause else name.lower()
    return f"{shown}: {why}" if why else shown


def _read_error_reason(error: status_pb2.Status) -> str:
    """Return the reason of an attempt's or a run's error, `CUDA_OOM`; empty where there is none."""
    for detail in error.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            return make_printable(info.reason)
    return ""


def list_remedies(run: pb.Run, attempts: Iterable[pb.Attempt]) -> list[str]:
    """Return what each reason for which attempts failed means and what to do about it, as in docs/errors.md; nothing
    for a run that succeeded after all.
    """
    if run.state == pb.Run.SUCCEEDED:
        return []
    reasons = dict.fromkeys(_read_error_reason(error) for error in (*(a.error for a in attempts), run.error))
    known = [BY_REASON[reason] for reason in reasons if reason in BY_REASON]
    return [f"{e.reason}: {e.meaning} {_fill_in(e.remedy, shorten_name(run.name))}" for e in known]


def _fill_in(remedy: str, run: str) -> str:
    """Return a remedy with the run's name in its commands, and its links as the names of pages."""
    return re.sub(r"\[[^]]*]\(([^)]*)\)", r"docs/\1", re.sub(r"\bRUN\b", run, remedy))


def describe_end(run: pb.Run) -> str:
    """Describe how a run ended, and what to do next."""
    name = shorten_name(run.name)
    if run.state == pb.Run.SUCCEEDED and run.HasField("output"):
        return f"{name} succeeded; {describe_output(run.output, name)}"
    if run.state == pb.Run.FAILED:
        return f"{name} {describe_state(run)}; more with: relayctl why {name}, relayctl logs {name}"
    return f"{name} {describe_state(run)}"
