"""`relayctl show`: everything about a run as aligned lines."""

from relay.v1 import runs_pb2 as pb
from relayctl.commands.show import format_run
from tests.relayctl.messages import NOW, a_checkpoint, a_run, an_error, attempt, stamp


def test_one_run() -> None:
    first = attempt(
        1, state=pb.Attempt.ENDED, outcome=pb.Attempt.FAULTED, reason="no heartbeat", end_time=stamp(minutes=1)
    )
    second = attempt(
        2,
        resumed_from="runs/sums/checkpoints/c",
        resumed_step=100,
        fidelity=pb.Attempt.CLOSE,
        fidelity_reasons=["torch was 2.12.1 and is 2.13.0", "device was NVIDIA L4 and is NVIDIA H200"],
        skipped=[pb.SkippedCheckpoint(step=110, reason="weights.bin does not match its digest")],
    )
    text = format_run(a_run(head=a_checkpoint(100)), [first, second], NOW)
    assert text.splitlines() == [
        "run         sums",
        "state       running",
        "progress    120/400 30%   train_loss 0.4512  zeta 1",
        "submitted   3 min ago",
        "so far      3 min",
        "head        step 100 (attempt 1), 2.0 MiB on relay, host-a",
        "attempts    1  host-a  from the start  1 min  faulted: no heartbeat",
        "            2  host-a  from step 100 (close)  2 min  held",
        "               skipped step 110: weights.bin does not match its digest",
        "               torch was 2.12.1 and is 2.13.0",
        "               device was NVIDIA L4 and is NVIDIA H200",
    ]


def test_a_failed_run_says_what_to_do() -> None:
    failed = attempt(1, state=pb.Attempt.ENDED, outcome=pb.Attempt.FAILED, error=an_error("SIGNAL", "SIGSEGV"))
    text = format_run(a_run(state=pb.Run.FAILED, error=failed.error), [failed], NOW)
    assert "failed (SIGNAL): SIGSEGV" in text and "\nto do       SIGNAL: A signal that Relay did not send" in text
