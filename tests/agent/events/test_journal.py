"""The agent's own lines."""

import json
from pathlib import Path

from agent.events.journal import Journal


async def test_lines_are_whole_even_after_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "agent.jsonl"
    path.write_bytes(b'{"type": "mess')
    end = await Journal(path).write("message", level="info", text="hello")
    torn, line, rest = path.read_bytes().split(b"\n")
    assert torn == b'{"type": "mess' and json.loads(line)["text"] == "hello" and rest == b""
    assert end == path.stat().st_size
