"""Jobs on the Hub, each in a process of its own, which can be killed at any moment and alone holds the token."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from storage.base import DamagedCopy, Progress, StoreRefused, StoreUnavailable, ignore_progress

_LAST = 2000  #: bytes of a process's stderr that are looked at
_QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True, slots=True)
class HubWorker:
    """Starts a process for each job. `environment` is all that it gets, with its token as HF_TOKEN."""

    python: str
    environment: Mapping[str, str]
    timeout: float = 60.0  #: seconds without a byte after which a request fails

    async def run_job(self, name: str, progress: Progress = ignore_progress, **arguments: Any) -> Any:
        """Return a job's answer. Raises StoreUnavailable, StoreRefused, DamagedCopy, OSError for this host's disk."""
        with tempfile.TemporaryFile() as stderr:
            process = await asyncio.create_subprocess_exec(
                *(self.python, "-m", "storage.hub"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env={**self.environment, **_QUIET},
                start_new_session=True,  # a Ctrl-C in a terminal is for the caller to handle
            )
            try:
                answer = await _converse(process, {"job": name, "timeout": self.timeout, **arguments}, progress)
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()
            return _result(answer, stderr)


async def _converse(process: asyncio.subprocess.Process, job: Mapping[str, Any], progress: Progress) -> Any:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        await process.stdin.drain()
    except ConnectionError:  # it died at once; its stderr says why
        return None
    async for line in process.stdout:
        answer = json.loads(line)
        if "progress" not in answer:
            return answer
        progress(answer["progress"])
    return None


def _result(answer: Mapping[str, Any] | None, stderr: IO[bytes]) -> Any:
    if answer is None:
        stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _LAST))
        last = stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise StoreUnavailable(f"the process that talks to the Hub ended without an answer ({last or 'it was killed'})")
    match answer.get("error"):
        case None:
            return answer["done"]
        case "away":
            raise StoreUnavailable(answer["text"], answer["after"])
        case "refused":
            raise StoreRefused(answer["text"])
        case "damaged":
            raise DamagedCopy(answer["text"])
    raise OSError(answer["errno"], answer["text"])
