"""One lease's life on a real agent with real shims and trainers, against a coordinator that the test scripts."""

import json

from relay.v1 import agents_pb2 as pb
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.hosts import Gate, stub


async def test_a_run_from_its_grant_to_its_result(fake: FakeCoordinator, hosts) -> None:
    await hosts(fake.address).start()
    lease = await fake.grant(stub(steps=6, save_every=2))
    await fake.until(lambda: lease.outcome)
    assert lease.outcome.WhichOneof("outcome") == "succeeded"
    assert lease.started.checkpoint == ""
    assert lease.steps() == [1, 2, 3, 4, 5, 6]
    assert 6 in lease.checkpoints and 6 in lease.copied()
    result = fake.folder(lease.outcome.succeeded.output.manifest_digest)
    assert json.loads(result["state.json"])["step"] == 6
    assert b"step 6 of 6" in lease.sources["stdout"]
