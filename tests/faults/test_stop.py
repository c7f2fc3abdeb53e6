"""Policy `stop` to the letter: a silent host's trainer is dead before its lease is over (S3, F3).

`make bench ARGS=stop` takes a hundred of these, and tells the margins.
"""

from __future__ import annotations

import pytest

from benchmarks.lapses import Lapse, Scene, Situation, witnessing
from relay.timing import TEST
from relayctl.client.client import RelayClient
from tests.end_to_end.fleet import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.rotating(1)]


def keeps_its_promise(lapse: Lapse) -> bool:
    """Dead in time, if the machine let the shim run when S3 assumes that it does."""
    scheduled = lapse.began - lapse.trusted <= TEST.margin and lapse.dead - lapse.began <= TEST.kill
    return lapse.margin >= 0 or not scheduled


@pytest.mark.parametrize("situation", [Situation.FROZEN, Situation.GONE, Situation.STARVED])
async def test_the_whole_tree_is_dead_before_the_lease_is_over(fleet: Fleet, situation: Situation) -> None:
    """Deaf to SIGTERM, with grandchildren in sessions of their own, and the agent of no help."""
    victim = await fleet.host("victim", "--slots", "2")
    await fleet.host("heir", "--slots", "2")
    async with (
        RelayClient.connect(fleet.proxy.address) as client,
        witnessing(fleet.folder / "witness") as witness,
    ):
        scene = Scene(client, fleet.deployment.database_url, victim, witness)
        for lapse in await scene.lapses(situation, 2):
            assert lapse.expired - lapse.trusted >= TEST.kill + TEST.margin, lapse  # whatever the machine's load
            assert lapse.expired < lapse.granted, lapse
            assert keeps_its_promise(lapse), lapse
        await victim.vanish()
