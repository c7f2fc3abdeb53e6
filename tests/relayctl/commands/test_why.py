"""`relayctl why`: the reasons for a run's state."""

from relay.v1 import runs_pb2 as pb
from relayctl.commands.why import format_explanation
from tests.relayctl.messages import NOW, a_run, an_error, attempt, stamp


def test_why_says_attempts_error_and_hosts() -> None:
    run = a_run(state=pb.Run.QUEUED, failures=1, reason="retried after a failure", eligible_time=stamp(seconds=-30))
    run.error.CopyFrom(an_error("CUDA_OOM", "CUDA out of memory\nat layer 3"))
    text = format_explanation(run, [attempt(1)], [], NOW)
    assert "sums is queued: retried after a failure" in text
    assert "not granted for another 30 s" in text and "  at layer 3" in text and "hosts:" in text
    assert "what to do:\n  CUDA_OOM: The GPU ran out of memory. Lower `per_device_train_batch_size`" in text
