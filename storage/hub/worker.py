"""Jobs for the Hub, each in a process of its own: it can be killed at any moment, and only it holds the token."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from storage.base import DamagedCopy, Progress, StoreRefused, StoreUnavailable, ignore_progress

_LAST = 2000  #: bytes of what a process said before it died
_QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True, slots=True)
class HubWorker:
    """How to start one. `environment` is all that it gets; its token is HF_TOKEN in there."""

    python: str
    environment: Mapping[str, str]
    timeout: float = 60.0  #: seconds without a byte after which a request is given up

    async def run_job(self, name: str, progress: Progress = ignore_progress, **arguments: Any) -> Any:
        """The answer. Raises StoreAway, StoreRefused, Damaged, and OSError for this host's disk."""
        with tempfile.TemporaryFile() as said:
            process = await asyncio.create_subprocess_exec(
                *(self.python, "-m", "storage.hub"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=said,
                env={**self.environment, **_QUIET},
                start_new_session=True,  # a Ctrl-C in a terminal is for who started us to decide on
            )
            try:
                answer = await _converse(process, {"job": name, "timeout": self.timeout, **arguments}, progress)
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()
            return _result(answer, said)


async def _converse(process: asyncio.subprocess.Process, job: Mapping[str, Any], progress: Progress) -> Any:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        await process.stdin.drain()
    except ConnectionError:  # it died at once; what it said tells why
        return None
    async for line in process.stdout:
        answer = json.loads(line)
        if "progress" not in answer:
            return answer
        progress(answer["progress"])
    return None


def _result(answer: Mapping[str, Any] | None, said: IO[bytes]) -> Any:
    if answer is None:
        said.seek(max(0, said.seek(0, os.SEEK_END) - _LAST))
        last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
        raise StoreUnavailable(f"what talks to the Hub ended without an answer ({last or 'it was killed'})")
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
