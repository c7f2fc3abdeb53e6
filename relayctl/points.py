"""Which checkpoint a person means: `RUN@STEP`, `RUN@latest` or `RUN@best`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from google.protobuf import json_format

from relay.errors import CheckpointUnknown
from relay.v1 import runs_pb2 as pb
from relayctl.client import RelayClient, short
from relayctl.looking import UsageMistake

LATEST, BEST = "latest", "best"


async def at(client: RelayClient, point: str) -> pb.Checkpoint:
    """The checkpoint; of several of a step the one on the curve. CheckpointUnknown names those that there are."""
    run, sign, which = point.partition("@")
    if not (run and sign and (which in (LATEST, BEST) or which.isdecimal())):
        raise UsageMistake(f'"{point}" names no checkpoint; write RUN@STEP, RUN@{LATEST} or RUN@{BEST}')
    found = await client.checkpoints(run, include_superseded=True, include_removed=True)
    if which == BEST:
        return await _best(client, run, found)
    fit = [each for each in found if (each.head if which == LATEST else each.step == int(which))]
    if fit:
        return max(fit, key=lambda each: (not each.superseded, not each.HasField("remove_time"), each.attempt))
    asked = "any step yet" if which == LATEST else f"step {which}"
    raise CheckpointUnknown(f"{short(run)} has no checkpoint of {asked}; {_known(found)}")


async def _best(client: RelayClient, run: str, found: Sequence[pb.Checkpoint]) -> pb.Checkpoint:
    """By the metric that the run file keeps the best by; of equal ones the newer."""
    spec = json_format.MessageToDict((await client.run(run)).spec)
    keep = spec.get("checkpoint", {}).get("keep", {})
    metric = keep.get("metric")
    if not metric:
        raise UsageMistake(
            f"{short(run)} says of no metric that it makes one best (checkpoint.keep.metric); name a step"
        )
    sign = -1.0 if keep.get("mode") == "max" else 1.0
    curve = [each for each in found if not each.superseded and not each.HasField("remove_time")]
    valued = [each for each in curve if math.isfinite(each.metrics.get(metric, math.nan))]
    if not valued:
        raise CheckpointUnknown(f"{short(run)} has no checkpoint with a value of {metric}; {_known(found)}")
    return min(reversed(valued), key=lambda each: sign * each.metrics[metric])


def _known(found: Sequence[pb.Checkpoint]) -> str:
    steps = sorted({each.step for each in found if not each.HasField("remove_time")})
    shown = ", ".join(map(str, steps[-10:]))
    return f"it has {'… ' if len(steps) > 10 else ''}{shown}" if steps else "it has none"
