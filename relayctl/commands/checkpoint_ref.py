"""The checkpoint that a person names on the command line."""

from __future__ import annotations

from google.protobuf import json_format

from relay.errors import CheckpointUnknown
from relay.v1 import runs_pb2 as pb
from relayctl.client.client import RelayClient
from relayctl.commands.looking import UsageMistake
from storage.checkpoint_ref import BEST, LATEST, CheckpointNotFound, CheckpointRef, NoBestMetric, choose_checkpoint


async def at(client: RelayClient, text: str) -> pb.Checkpoint:
    """The checkpoint of `RUN@STEP`, `RUN@latest` or `RUN@best`. CheckpointUnknown names those that there are."""
    try:
        point = CheckpointRef.parse(text)
    except ValueError as wrong:
        raise UsageMistake(str(wrong)) from None
    if not point.which:
        raise UsageMistake(f'"{text}" names no checkpoint; write RUN@STEP, RUN@{LATEST} or RUN@{BEST}')
    found = await client.checkpoints(point.run, include_superseded=True, include_removed=True)
    spec = json_format.MessageToDict((await client.run(point.run)).spec) if point.which == BEST else {}
    kept = [each for each in found if not each.HasField("remove_time")]
    try:
        return choose_checkpoint(point.which, kept, spec)
    except NoBestMetric as none:
        raise UsageMistake(f"{point.run} has {none}") from None
    except CheckpointNotFound as none:
        gone = [each for each in found if point.which == str(each.step)]
        if gone:
            return gone[-1]
        raise CheckpointUnknown(f"{point.run} has {none}") from None
