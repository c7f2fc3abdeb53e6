"""An adapter merged into its base model, by the trainers' own program."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path


class MergeFailed(Exception):
    """The adapter cannot be merged; says why."""


async def merge(
    python: str, environment: Mapping[str, str], *, adapter: Path, run_file: Path, cwd: Path, into: Path
) -> str:
    """Merge an adapter into its base model, in a process, into a folder of its own; what the check said."""
    process = await asyncio.create_subprocess_exec(
        *(
            python,
            "-m",
            "trainers.merge",
            str(adapter),
            str(into),
            "--run-file",
            str(run_file),
            "--until-stdin-ends",
        ),
        cwd=cwd,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        stdin=asyncio.subprocess.PIPE,  # it ends when we do
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        said = (await process.stdout.read()).decode(errors="replace").strip()
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    last = said.rpartition("\n")[2]
    if code:
        raise MergeFailed(last or f"it ended with {code}")
    return last
