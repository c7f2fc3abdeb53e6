"""What people see of runs and hosts."""

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from relay.v1 import fleet_pb2
from relay.v1 import runs_pb2 as pb
from relayctl.output import views
from relayctl.output.format import block
from runfile import parse_run_file

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def stamp(**before: float) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(NOW - timedelta(**before))
    return made


def a_run(**fields: object) -> pb.Run:
    run = pb.Run(name="runs/sums", state=pb.Run.RUNNING, wanted=pb.Run.RUN, create_time=stamp(minutes=3), attempts=1)
    run.attempt.CopyFrom(attempt())
    run.progress.CopyFrom(pb.Progress(step=120, total=400, metrics={"train_loss": 0.45123, "zeta": 1.0}))
    run.MergeFrom(pb.Run(**fields))  # type: ignore[arg-type]
    return run


def attempt(number: int = 1, **fields: object) -> pb.Attempt:
    made = pb.Attempt(
        name=f"runs/sums/leases/{number}",
        number=number,
        state=pb.Attempt.HELD,
        places=[pb.Place(agent="agents/host-a", slots=[0])],
        grant_time=stamp(minutes=2),
    )
    made.MergeFrom(pb.Attempt(**fields))  # type: ignore[arg-type]
    return made


def test_runs_have_the_reason_in_the_cell() -> None:
    queued = pb.Run(
        name="runs/big",
        state=pb.Run.QUEUED,
        create_time=stamp(seconds=5),
        reason="needs 2 GPUs ≥ 40 GiB on one host; best free host has 1",
    )
    failed = pb.Run(
        name="runs/bad",
        state=pb.Run.FAILED,
        create_time=stamp(hours=2),
        attempts=3,
        reason="CUDA_OOM at step 120 (attempt 2 of 3)",
    )
    assert views.runs_table([a_run(), queued, failed], NOW).splitlines() == [
        "NAME  PROGRESS     HOST    TRY  AGE        STATE",
        "sums  120/400 30%  host-a  1    3 min      running",
        "big   -            -       -    5 s        queued: needs 2 GPUs ≥ 40 GiB on one host; best free host has 1",
        "bad   -            -       3    2 h 0 min  failed: CUDA_OOM at step 120 (attempt 2 of 3)",
    ]


def test_what_is_wished_shows_beside_the_state() -> None:
    assert views.state_cell(a_run(wanted=pb.Run.PAUSE)) == "running, pausing"
    assert views.state_cell(a_run(wanted=pb.Run.CANCEL)) == "running, cancelling"


def test_wide_adds_and_control_characters_go() -> None:
    text = views.runs_table([a_run(labels={"team": "nlp\x1b[2J"})], NOW, wide=True)
    assert "team=nlp" in text and "train_loss 0.4512  zeta 1" in text and "\x1b" not in text


def test_one_run() -> None:
    first = attempt(
        1, state=pb.Attempt.ENDED, outcome=pb.Attempt.FAULTED, reason="host fell silent", end_time=stamp(minutes=1)
    )
    second = attempt(
        2,
        resumed_from="runs/sums/checkpoints/c",
        resumed_step=100,
        skipped=[pb.SkippedCheckpoint(step=110, reason="weights.bin does not match its digest")],
    )
    text = views.run_block(a_run(head=a_checkpoint(100)), [first, second], NOW)
    assert text.splitlines() == [
        "run         sums",
        "state       running",
        "progress    120/400 30%   train_loss 0.4512  zeta 1",
        "submitted   3 min ago",
        "so far      3 min",
        "head        step 100 (attempt 1), 2.0 MiB on relay, host-a",
        "attempts    1  host-a  from the start  1 min  faulted: host fell silent",
        "            2  host-a  from step 100  2 min  held",
        "               refused step 110: weights.bin does not match its digest",
    ]


def a_checkpoint(step: int, **fields: object) -> pb.Checkpoint:
    copies = [pb.Copy(store="relay", uri="relay://sha256:0"), pb.Copy(store="host", uri="host://agents/host-a")]
    part = pb.CheckpointPart(size=2 << 20, files=3, copies=copies)
    made = pb.Checkpoint(
        name=f"runs/sums/checkpoints/{step}",
        attempt=1,
        step=step,
        parts=[part],
        complete=True,
        create_time=stamp(seconds=9),
    )
    made.MergeFrom(pb.Checkpoint(**fields))  # type: ignore[arg-type]
    return made


def test_checkpoints() -> None:
    copies = [pb.Copy(store="host", uri="host://agents/host-b", remove_time=stamp())]
    found = [
        a_checkpoint(50, superseded=True, keep_reasons=["pinned"], pinned=True, pin_reason="the paper's"),
        a_checkpoint(60, remove_reason="no longer asked for"),
        a_checkpoint(70, remove_reason="older than 7d", remove_time=stamp(), parts=[pb.CheckpointPart(copies=copies)]),
        a_checkpoint(100, head=True, keep_reasons=["head", "one of the last 3"], metrics={"eval_loss": 0.5}),
    ]
    text = views.checkpoints_table(found, NOW)
    assert text.splitlines() == [
        "STEP  TRY  SIZE     AGE  ON             METRICS        KEPT BECAUSE",
        "50    1    2.0 MiB  9 s  relay, host-a  -              off the curve, pinned: the paper's",
        "60    1    2.0 MiB  9 s  relay, host-a  -              goes next: no longer asked for",
        "70    1    2.0 MiB  9 s  relay, host-a  -              going: older than 7d",
        "100   1    2.0 MiB  9 s  relay, host-a  eval_loss 0.5  head, one of the last 3",
    ]
    assert "FILES  NAME  KEPT BECAUSE" in views.checkpoints_table(found, NOW, wide=True)
    del found[2].parts[:]
    assert views.standing_of(found[2]) == "gone: older than 7d"


def test_what_is_kept_is_said_in_the_plan() -> None:
    keep = {"last": 2, "best": 1, "metric": "eval_loss", "every": "500 steps", "max_age": "7d", "max_total": "1GiB"}
    run = parse_run_file({"method": "command", "command": ["true"], "checkpoint": {"keep": keep}})
    words = dict(views.spec_block(run, "run.yaml"))["checkpoint"]
    assert words == (
        "every 10 min, the last 2, the best 1 by eval_loss, one every 500 steps, none older than 7 d 0 h, "
        "at most 1.0 GiB kept"
    )


def test_agents() -> None:
    gpus = [fleet_pb2.Gpu(index=i, model="NVIDIA H100") for i in range(2)]
    agents = [
        fleet_pb2.Agent(
            name="agents/a",
            state=fleet_pb2.Agent.READY,
            capability=fleet_pb2.Capability(gpus=gpus),
            leases=["runs/sums/leases/1"],
            free_slots=[1],
            heartbeat_time=stamp(seconds=2),
        ),
        fleet_pb2.Agent(
            name="agents/b",
            state=fleet_pb2.Agent.NOT_READY,
            reason="disk is full",
            capability=fleet_pb2.Capability(cpus=8, memory_bytes=16 << 30, slots=1),
        ),
        fleet_pb2.Agent(name="agents/c", state=fleet_pb2.Agent.UNREACHABLE, reason="is unreachable"),
    ]
    assert views.agents_table(agents, NOW).splitlines() == [
        "NAME  HARDWARE                  FREE  RUNS  SEEN     STATE",
        "a     2 x NVIDIA H100           1     sums  2 s ago  ready",
        "b     8 CPUs, 16.0 GiB, 1 slot  0     -     never    not ready: disk is full",
        "c     0 CPUs, 0 B, 0 slots      0     -     never    unreachable",
    ]


def test_why_says_attempts_error_and_hosts() -> None:
    run = a_run(state=pb.Run.QUEUED, failures=1, reason="retried after a failure", eligible_time=stamp(seconds=-30))
    run.error.message = "CUDA out of memory\nat layer 3"
    text = views.why_text(run, [attempt(1)], [], NOW)
    assert "sums is queued: retried after a failure" in text
    assert "not granted for another 30 s" in text and "  at layer 3" in text and "hosts:" in text


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (pb.Run.QUEUED, "is queued: because"),
        (pb.Run.SUCCEEDED, "succeeded: because"),
        (pb.Run.FAILED, "failed: because"),
        (pb.Run.CANCELLED, "was cancelled: because"),
    ],
)
def test_a_state_in_a_sentence(state: pb.Run.State.ValueType, said: str) -> None:
    assert views.standing(a_run(state=state, reason="because")) == said


def test_a_reason_that_names_the_state_is_not_said_twice() -> None:
    stopped = a_run(state=pb.Run.CANCELLED, reason="cancelled by an operator: enough")
    assert views.standing(stopped) == "was cancelled by an operator: enough"
    assert views.state_cell(a_run(state=pb.Run.CANCELLED, reason="cancelled")) == "cancelled"


def stretch(metric: str, number: int, steps: list[int], *, superseded: bool = False) -> pb.ReadMetricsResponse:
    lease, values = f"runs/s/leases/{number}", [float(step) for step in steps]
    return pb.ReadMetricsResponse(
        metric=metric, attempt=number, lease=lease, steps=steps, values=values, superseded=superseded
    )


def test_a_run_has_one_curve_with_its_restarts_marked() -> None:
    curves = views.series(
        [
            stretch("loss", 1, [1, 2]),
            stretch("loss", 1, [3, 4], superseded=True),
            stretch("loss", 2, [3]),
            stretch("loss", 2, [4, 5]),
            stretch("lr", 1, [1]),
        ]
    )
    assert [(c.name, list(c.steps), list(c.restarts)) for c in curves] == [
        ("loss", [1, 2, 3, 4, 5], [3]),
        ("lr", [1], []),
    ]
    assert views.metrics_table(curves).splitlines() == [
        "METRIC  STEP  LAST  MIN  MAX  POINTS",
        "loss    5     5     1    5    5",
        "lr      1     1     1    1    1",
    ]


def test_a_metric_of_nan_only_is_shown() -> None:
    nan = pb.ReadMetricsResponse(metric="loss", steps=[1], values=[float("nan")])
    assert views.metrics_table(views.series([nan])).splitlines()[1].split() == ["loss", "1", "nan", "-", "-", "1"]


def test_events_and_ends() -> None:
    event = pb.RunEvent(time=stamp(), text="granted to host-a (attempt 1)", level="info", kind=pb.RunEvent.GRANTED)
    assert views.event_line(event).endswith("  granted to host-a (attempt 1)")
    assert "!! " in views.event_line(pb.RunEvent(time=stamp(), level="error", kind=pb.RunEvent.ENDED))
    done = a_run(state=pb.Run.SUCCEEDED, output=pb.Output(manifest_digest="x", files=2, size=10))
    assert views.end_line(done) == "sums succeeded; 2 files, 10 B; fetch it with: relayctl pull sums DIR"
    assert "relayctl why sums" in views.end_line(a_run(state=pb.Run.FAILED, reason="EXIT_CODE 3"))


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
    assert block(views.spec_block(run, "x.yaml")).splitlines() == [
        "run          sums, sft, from x.yaml",
        "model        o/m @ main, LoRA r=16",
        "data         a.jsonl; 0.02 of it held out",
        "resources    2 GPUs, ≥ 24 GiB of VRAM each",
        "checkpoint   every 10 min, the last 3 kept",
        "lifecycle    at most 3 attempts, on disconnect continue",
    ]
