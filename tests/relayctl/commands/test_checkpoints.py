"""`relayctl checkpoints`: why each checkpoint is kept or deleted."""

from relay.v1 import runs_pb2 as pb
from relayctl.commands.checkpoints import describe_retention, format_checkpoints_table
from tests.relayctl.messages import NOW, a_checkpoint, stamp


def test_checkpoints() -> None:
    copies = [pb.Copy(store="host", uri="host://agents/host-b", remove_time=stamp())]
    found = [
        a_checkpoint(50, superseded=True, keep_reasons=["pinned"], pinned=True, pin_reason="the paper's"),
        a_checkpoint(60, remove_reason="not selected by checkpoint.keep"),
        a_checkpoint(70, remove_reason="older than 7d", remove_time=stamp(), parts=[pb.CheckpointPart(copies=copies)]),
        a_checkpoint(100, head=True, keep_reasons=["head", "one of the last 3"], metrics={"eval_loss": 0.5}),
    ]
    text = format_checkpoints_table(found, NOW)
    assert text.splitlines() == [
        "STEP  TRY  SIZE     AGE  ON             METRICS        KEPT BECAUSE",
        "50    1    2.0 MiB  9 s  relay, host-a  -              superseded, pinned: the paper's",
        "60    1    2.0 MiB  9 s  relay, host-a  -              deleted next: not selected by checkpoint.keep",
        "70    1    2.0 MiB  9 s  relay, host-a  -              being deleted: older than 7d",
        "100   1    2.0 MiB  9 s  relay, host-a  eval_loss 0.5  head, one of the last 3",
    ]
    assert "FILES  NAME  KEPT BECAUSE" in format_checkpoints_table(found, NOW, wide=True)
    del found[2].parts[:]
    assert describe_retention(found[2]) == "deleted: older than 7d"
