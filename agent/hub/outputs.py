"""What one attempt publishes on the Hub: its model, and copies of its whole state."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Never

from agent.checkpoints.publisher import RegisteredCheckpoint
from agent.folder import AttemptFolder
from agent.hub.publication import ModelPublication, PublishableModel
from agent.hub.state import StateCopier

#: Seconds that publishing may hold up the end of an attempt: with a result; that stops or fails; whose host leaves.
RESULT, STOPPING, LEAVING = 3600.0, 60.0, 30.0


@dataclass(frozen=True, slots=True)
class HubOutputs:
    """The Hub outputs of one attempt; without effect where the run is not published."""

    publication: ModelPublication | None = None
    state: StateCopier | None = None
    folder: AttemptFolder | None = None
    sweep: Callable[[], Coroutine[Any, Any, None]] | None = None

    def offer(self, registered: RegisteredCheckpoint) -> None:
        """Queue a newer checkpoint."""
        saved = registered.sealed.saved
        if self.publication is not None and self.folder is not None:
            digest = registered.sealed.manifest.digest
            self.publication.offer(
                PublishableModel(saved.step, self.folder.checkpoint(saved.step), digest, saved.metrics)
            )
        if self.state is not None:
            self.state.offer(registered)

    @property
    def needed(self) -> set[int]:
        """Return the steps whose folders must stay on this host."""
        return {step for part in (self.publication, self.state) if part is not None for step in part.needed}

    async def run(self) -> Never:
        """Publish until cancelled. Raises LeaseLost."""
        async with asyncio.TaskGroup() as group:
            if self.sweep is not None:
                group.create_task(self.sweep())
            for part in (self.publication, self.state):
                if part is not None:
                    group.create_task(part.run())
            await asyncio.Event().wait()
        raise AssertionError("never reached")

    async def finish(self, result: PublishableModel | None, limit: float) -> None:
        """Publish the last time, within so many seconds.

        Copies of state that are on their way are waited for, too, but not for long: copies in other stores must
        suffice.
        """
        began = asyncio.get_running_loop().time()
        if self.state is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(limit, STOPPING)):
                    await self.state.drain()
        if self.publication is not None:
            await self.publication.finish(result, limit - (asyncio.get_running_loop().time() - began))


def find_result(folder: AttemptFolder, step: int | None) -> PublishableModel | None:
    """Return the run's result as a model; None when it has none. Blocking."""
    if step is None or not folder.output.is_dir() or not any(folder.output.iterdir()):
        return None
    return PublishableModel(step, folder.output, final=True)
