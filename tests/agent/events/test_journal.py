"""The agent's own lines."""

import json
import time
from pathlib import Path

import pytest

from agent.events.journal import Journal


async def test_lines_are_whole_even_after_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "agent.jsonl"
    path.write_bytes(b'{"type": "mess')
    end = await Journal(path, time.time).append("message", level="info", text="hello")
    torn, line, rest = path.read_bytes().split(b"\n")
    assert torn == b'{"type": "mess' and json.loads(line)["text"] == "hello" and rest == b""
    assert end == path.stat().st_size


async def test_a_full_disk_costs_a_message_and_never_the_agent(tmp_path: Path) -> None:
    """F15."""
    (tmp_path / "agent.jsonl").symlink_to("/dev/full")
    journal = Journal(tmp_path / "agent.jsonl", time.time)
    await journal.record("error", "no room")
    with pytest.raises(OSError, match="No space left"):
        await journal.append("checkpoint", step=1)
