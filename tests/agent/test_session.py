"""The session: who may speak, and what happens when nobody answers."""

import signal
from pathlib import Path
from random import Random

import pytest

from agent.coordinator_client import Contact
from agent.leases import HeartbeatReply, SessionState
from agent.session import AgentIdentity, Session, StreamBroken, require_answers
from relay.errors import DeploymentForeign, IdentityInUse, SessionReplaced
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.hosts import MakeHost, stub


async def test_a_foreign_deployment_is_refused_loudly(fake: FakeCoordinator, hosts: MakeHost) -> None:
    host = hosts(fake.address)
    await host.start()
    await fake.until(lambda: fake.heartbeats)
    assert await host.end() == 0
    fake.deployment = "deployment-2"
    await host.start()
    assert host.agent is not None and await host.agent.wait() == 78
    assert "deployment" in host.log.read_text()


async def test_an_identity_in_use_is_tried_again_until_it_is_free(fake: FakeCoordinator, hosts: MakeHost) -> None:
    """F21."""
    fake.refuse_hello = IdentityInUse()
    host = hosts(fake.address)
    await host.start()
    await fake.until(lambda: fake.refused > 2)
    fake.refuse_hello = None
    await fake.until(lambda: fake.heartbeats)
    assert host.log.read_text().count("Another host sends heartbeats under this agent's name") == 1


async def test_a_replaced_session_ends_the_agent(fake: FakeCoordinator, hosts: MakeHost) -> None:
    fake.refuse_hello = SessionReplaced()
    host = hosts(fake.address)
    await host.start()
    assert host.agent is not None and await host.agent.wait() == 1


async def test_a_coordinator_that_does_not_answer_is_dialled_anew(fake: FakeCoordinator, hosts: MakeHost) -> None:
    """The transport lives; two heartbeats without an answer end the session all the same."""
    await hosts(fake.address).start()
    await fake.until(lambda: fake.heartbeats)
    fake.answering = False
    await fake.until(lambda: len(fake.hellos) >= 2)
    fake.answering = True
    lease = await fake.grant(stub(steps=1))
    await fake.until(lambda: lease.ended)
    assert lease.ended == "succeeded"


async def test_a_grant_is_pushed_and_a_change_told_at_once(fake: FakeCoordinator, hosts: MakeHost) -> None:
    """No heartbeat interval is waited for, either way."""
    fake.timing = type(fake.timing)(ttl=300.0, heartbeat=60.0)
    host = hosts(fake.address)
    await host.start()
    await fake.until(lambda: fake.heartbeats)
    lease = await fake.grant(stub(steps=1))
    await fake.until(lambda: lease.ended and not fake.heartbeats[-1].held)
    assert await host.end(signal.SIGTERM) == 0


def test_a_deployment_is_remembered_and_another_refused(tmp_path: Path) -> None:
    identity = AgentIdentity("i", "b", tmp_path / "data/deployment")
    assert identity.deployment() == ""
    identity.recognise("one")
    identity.recognise("one")
    assert identity.deployment() == "one"
    with pytest.raises(DeploymentForeign):
        identity.recognise("two")


async def test_silence_breaks_a_line() -> None:
    with pytest.raises(StreamBroken):
        async with require_answers(0.01):
            await Contact(lambda: 0.0).wait_for_reply()


def test_pauses_are_jittered_and_capped() -> None:
    """L2."""
    session = Session(None, None, Contact(lambda: 0.0), dial=None, now=lambda: 0.0, random=Random(1))  # type: ignore[arg-type]
    pauses = [session._backoff.next_pause() for _ in range(200)]
    assert max(pauses) <= 5.0 and max(pauses[:2]) <= 0.4
    assert len(set(pauses)) == 200


def test_heartbeats_of_an_older_session_are_not_answers() -> None:
    standing = SessionState("s", 0.0).record_sent(1, 1.0, ())
    assert not standing.accepts(HeartbeatReply("older", 9, 1, {}))
