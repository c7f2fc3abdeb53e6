"""Damaged checkpoints are refused on resume, the one before is used, the history says why, and the store is repaired by
what the next attempt saves (S6, F16)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from relay.v1 import runs_pb2 as pb
from tests.end_to_end.fleet import Fleet, Kind

pytestmark = [pytest.mark.slow, pytest.mark.rotating(3, of="end to end")]


def weights(artifacts: Path, step: int) -> Path:
    """Where the store keeps the gated trainer's weights of a step."""
    state = hashlib.sha256(b"start").digest()
    for _ in range(step):
        state = hashlib.sha256(state + b"step").digest()
    (found,) = (path for path in artifacts.rglob("*") if path.is_file() and path.read_bytes() == state * 4096)
    return found


def set_aside(artifacts: Path) -> list[Path]:
    """What the store has found damaged."""
    return list((artifacts / "damaged").iterdir())


def wrong_blobs(artifacts: Path) -> list[Path]:
    """What the store would give away that does not match its name."""
    blobs = (path for path in (artifacts / "blobs").rglob("*") if path.is_file())
    return [path for path in blobs if hashlib.sha256(path.read_bytes()).hexdigest() != path.name]


def damage(path: Path, content: bytes) -> None:
    """Change bytes as a bad disk would: without an error."""
    path.chmod(0o600)
    path.write_bytes(content)


async def test_truncated_and_flipped_checkpoints_are_passed_over(fleet: Fleet) -> None:
    first = await fleet.host("a")
    run = await fleet.submit_gated(steps=10, save_every=2, checkpoint={"keep": {"last": 9}})
    for step in (2, 4, 6):  # one at a time: of a backlog only the newest is sent
        await fleet.conductor.allow(step)
        await run.checkpoint(step)
    await fleet.conductor.allow(7)
    await fleet.conductor.reached(7)
    newest, before = weights(fleet.deployment.artifacts, 6), weights(fleet.deployment.artifacts, 4)
    damage(newest, newest.read_bytes()[:1000])
    flipped = bytearray(before.read_bytes())
    flipped[5000] ^= 1
    damage(before, bytes(flipped))
    await first.vanish()
    await fleet.conductor.hold_trainers_after(2)
    await fleet.host("b")

    second = await fleet.conductor.called(2)
    assert second.resumed_from == 2
    started = await run.until(lambda event: event.kind == Kind.STARTED and event.attempt == 2)
    assert "4" in started.text and "6" in started.text
    (_, attempt) = await run.attempts()
    assert [(skipped.step, bool(skipped.reason)) for skipped in attempt.skipped] == [(6, True), (4, True)]
    head = (await run.get()).head
    assert head.step == 2

    assert len(set_aside(fleet.deployment.artifacts)) == 2
    for step in (4, 6):  # the same bytes again, which the store must take this time
        await fleet.conductor.allow(step)
        await run.checkpoint(step, attempt=2)
        assert weights(fleet.deployment.artifacts, step).parent.parent.name == "blobs"
    assert not wrong_blobs(fleet.deployment.artifacts)
    await fleet.conductor.allow(10)
    ended = await run.ended()
    assert ended.state == pb.Run.SUCCEEDED and ended.head.step == 10
    on_curve = [(c.attempt, c.step) for c in await run.checkpoints()]
    assert on_curve[:3] == [(1, 2), (2, 4), (2, 6)] and on_curve[-1] == (2, 10)
    assert [c.step for c in await run.checkpoints(superseded=True) if c.superseded] == [4, 6]
    await run.has_one_curve(10)
