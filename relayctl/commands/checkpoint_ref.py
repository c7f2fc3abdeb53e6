"""Finding the checkpoint that a user names as RUN@STEP, RUN@latest or RUN@best."""

from __future__ import annotations

from google.protobuf import json_format

from relay.errors import CheckpointUnknown
from relay.v1 import runs_pb2 as pb
from relayctl.client import PullFailed, RelayClient
from relayctl.commands.exits import UsageMistake
from storage.checkpoint_ref import BEST, LATEST, CheckpointNotFound, CheckpointRef, NoBestMetric, choose_checkpoint


async def find_checkpoint(client: RelayClient, text: str) -> pb.Checkpoint:
    """Return the checkpoint that the text names; raises CheckpointUnknown, which names those that there are."""
    try:
        point = CheckpointRef.parse(text)
    except ValueError as error:
        raise UsageMistake(str(error)) from None
    if not point.which:
        raise UsageMistake(f'"{text}" names no checkpoint; write RUN@STEP, RUN@{LATEST} or RUN@{BEST}')
    every = await client.list_checkpoints(point.run, include_superseded=True, include_removed=True)
    spec = json_format.MessageToDict((await client.get_run(point.run)).spec) if point.which == BEST else {}
    kept = [checkpoint for checkpoint in every if not checkpoint.HasField("remove_time")]
    try:
        return choose_checkpoint(point.which, kept, spec)
    except NoBestMetric as error:
        raise UsageMistake(f"{point.run} has {error}") from None
    except CheckpointNotFound as error:
        removed = [checkpoint for checkpoint in every if point.which == str(checkpoint.step)]
        if removed:
            return removed[-1]
        raise CheckpointUnknown(f"{point.run} has {error}") from None


async def find_complete_checkpoint(client: RelayClient, text: str) -> pb.Checkpoint:
    """Return the checkpoint that the text names; raises PullFailed when not all nodes have saved their part."""
    checkpoint = await find_checkpoint(client, text)
    if not checkpoint.complete:
        raise PullFailed(f"step {checkpoint.step} is not complete: not all nodes have saved their part")
    return checkpoint
