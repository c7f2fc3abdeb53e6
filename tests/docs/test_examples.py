"""The programs on docs/events.md keep the contract by themselves: they resume where a checkpoint ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.page import PAGES, blocks

PROGRAMS = {block.file: block.text for block in blocks(PAGES / "events.md") if block.file in ("count.sh", "count.py")}


@pytest.mark.parametrize(("name", "program"), [("count.sh", "bash"), ("count.py", sys.executable)])
def test_an_example_resumes_where_its_checkpoint_ends(name: str, program: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(PROGRAMS[name])
    first = attempt([program, tmp_path / name], tmp_path / "first")
    assert first == list(range(1, 21))
    saved = tmp_path / "first" / "staging" / "step_00000010"
    assert attempt([program, tmp_path / name], tmp_path / "second", RELAY_RESUME_FROM=str(saved)) == first[10:]
    assert (tmp_path / "second" / "output" / "result.txt").read_text() == "counted to 20\n"


def attempt(argv: list[str | Path], folder: Path, **more: str) -> list[int]:
    """Run one attempt as an agent would, and return the steps whose metrics it reported."""
    (folder / "staging").mkdir(parents=True)
    (folder / "output").mkdir()
    contract = {
        "RELAY_CKPT_STAGING_ROOT": str(folder / "staging"),
        "RELAY_OUTPUT_DIR": str(folder / "output"),
        "RELAY_EVENTS": str(folder / "events.jsonl"),
    }
    subprocess.run(argv, check=True, env={**os.environ, **contract, **more}, timeout=60)
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["type"] == "metric"]
