"""The table of agents."""

from relay.v1 import fleet_pb2
from relayctl.output.agents import format_agents_table
from tests.relayctl.messages import NOW, stamp


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
    assert format_agents_table(agents, NOW).splitlines() == [
        "NAME  HARDWARE                  FREE  RUNS  SEEN     STATE",
        "a     2 x NVIDIA H100           1     sums  2 s ago  ready",
        "b     8 CPUs, 16.0 GiB, 1 slot  0     -     never    not ready: disk is full",
        "c     0 CPUs, 0 B, 0 slots      0     -     never    unreachable",
    ]
