"""A coordinator ends connections that have grown old, so that replicas share the load: to an agent that is nothing."""

from __future__ import annotations

from functools import partial

from tests.agent.fake_coordinator import FakeCoordinator, running
from tests.agent.hosts import Gate, MakeHost, stub


async def test_connections_that_end_of_age_cost_no_step_and_no_line(hosts: MakeHost, gate: Gate) -> None:
    async with running(max_connection_age_ms=500, max_connection_age_grace_ms=100) as fake:
        host = hosts(fake.address)
        await host.start()
        lease = await fake.grant(stub(steps=9, save_every=3, gate=gate.path))
        for step in range(1, 10):
            await fake.until(partial(_sessions, fake, 1 + step // 2))
            gate.let(1)
        await fake.until(lambda: lease.ended)
        assert len(fake.hellos) >= 5 and len({hello.instance_id for hello in fake.hellos}) == 1
        assert lease.ended == "succeeded" and lease.starts == 1
        assert lease.steps() == list(range(1, 10)) and 9 in lease.copied()
        assert (host.attempt("r") / "events.jsonl").read_bytes() == lease.sources["events"]


def _sessions(fake: FakeCoordinator, count: int) -> bool:
    return len(fake.hellos) >= count
