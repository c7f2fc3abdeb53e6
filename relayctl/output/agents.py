"""The table of agents, which `agents` and `why` print. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from relay.v1 import fleet_pb2
from relayctl.client.client import shorten_name
from relayctl.output.format import (
    format_ago,
    format_bytes,
    format_count,
    format_pairs,
    format_table,
    make_printable,
    to_datetime,
)


def format_agents_table(
    agents: Sequence[fleet_pb2.Agent], now: datetime, *, wide: bool = False, width: int | None = None
) -> str:
    """Return the table of agents, one a row; the state with its reason is last, so that only it is cut."""
    headers = ["NAME", "HARDWARE", "FREE", "RUNS", "SEEN"]
    extra = ["LABELS", "VERSIONS"] if wide else []
    rows = []
    for agent in agents:
        runs = [lease.split("/")[1] for lease in agent.leases if lease.count("/") >= 3]
        cells = [shorten_name(agent.name), _describe_hardware(agent.capability), str(len(agent.free_slots))]
        cells += [", ".join(runs)]
        cells += [format_ago(to_datetime(agent.heartbeat_time), now) if agent.HasField("heartbeat_time") else "never"]
        if wide:
            cells += [format_pairs(agent.labels), format_pairs(agent.capability.versions)]
        rows.append([*cells, _format_state(agent)])
    return format_table([*headers, *extra, "STATE"], rows, width)


def _format_state(agent: fleet_pb2.Agent) -> str:
    name = fleet_pb2.Agent.State.Name(agent.state).lower().replace("_", " ")
    return name if agent.reason in ("", f"is {name}") else f"{name}: {make_printable(agent.reason)}"


def _describe_hardware(capability: fleet_pb2.Capability) -> str:
    """Return `2 x NVIDIA H100 80GB HBM3`, or CPUs and memory of a host without GPUs."""
    if not capability.gpus:
        memory, slots = format_bytes(capability.memory_bytes), format_count(capability.slots, "slot")
        return f"{format_count(capability.cpus, 'CPU')}, {memory}, {slots}"
    models: dict[str, int] = {}
    for gpu in capability.gpus:
        models[gpu.model] = models.get(gpu.model, 0) + 1
    return ", ".join(f"{amount} x {model}" for model, amount in models.items())
