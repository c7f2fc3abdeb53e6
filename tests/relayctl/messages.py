"""Messages of the contract as a coordinator would send them, for tests of what commands print."""

from datetime import UTC, datetime, timedelta

from google.protobuf import any_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from relay.errors import DOMAIN
from relay.v1 import runs_pb2 as pb

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


def an_error(reason: str, message: str) -> status_pb2.Status:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    return status_pb2.Status(code=2, message=message, details=[packed])


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


def segment(metric: str, number: int, steps: list[int], *, superseded: bool = False) -> pb.ReadMetricsResponse:
    lease, values = f"runs/s/leases/{number}", [float(step) for step in steps]
    return pb.ReadMetricsResponse(
        metric=metric, attempt=number, lease=lease, steps=steps, values=values, superseded=superseded
    )
