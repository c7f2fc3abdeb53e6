"""What a host observes of one trainer by reading its files: steps, checkpoints, progress."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from agent.attempt.progress import TrainerProgress
from agent.checkpoints.staging import CompletionRule, StagingScanner
from agent.events.reports import PhaseReport, Report, ReportReader, SavedCheckpoint, StepReport
from agent.folder import AttemptFolder
from relay.logs import get_logger
from runfile import RunFile

log = get_logger(__name__)

_CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")
_TAIL = 64 * 1024
_NO_ROOM = 64 * 1024  #: bytes free below which a disk counts as full
UNNAMED = 2.0  #: seconds by which the line that names a checkpoint may come after its folder


def make_scanner(run: RunFile, folder: AttemptFolder, now: Callable[[], float]) -> StagingScanner:
    """Return the scanner that finds checkpoints without an event line, by the run file's rule."""
    adopt = run.adopt.checkpoints if run.adopt else None
    if adopt is None:
        return StagingScanner(folder.staging, folder.staging, CompletionRule(), now)
    root = folder.work / run.workdir / adopt.folder if adopt.folder else folder.staging
    rule = CompletionRule(pattern=adopt.pattern, marker=adopt.complete.marker, still_for=adopt.complete.still_for)
    return StagingScanner(root, folder.staging, rule, now)


class TrainerWatch:
    """The files of one trainer, read from time to time. `now` counts seconds, also while the host sleeps."""

    def __init__(
        self,
        folder: AttemptFolder,
        progress: TrainerProgress,
        scanner: StagingScanner,
        now: Callable[[], float],
        *,
        rejoined: bool,
    ) -> None:
        self._folder = folder
        self.progress = progress
        self._scanner = scanner
        self._now = now
        self._events = ReportReader(folder.events)
        self._agent = ReportReader(folder.agent_log, source="agent") if rejoined else None
        self._unnamed: dict[str, tuple[SavedCheckpoint, float]] = {}
        self._written = -1
        self._live = not rejoined  #: whether times count: what an earlier agent has read says nothing about speed
        self._killed_before = count_oom_kills()

    async def poll(self, *, final: bool = False) -> list[SavedCheckpoint]:
        """Return the checkpoints that the trainer has finished since the last call. `final` when it has ended."""
        reports, found, written = await asyncio.to_thread(self._read, final)
        now = self._now()
        if written != self._written:
            self._written = written
            self.progress.record_write(now)
        for report in reports:
            match report:
                case StepReport(step):
                    self.progress.record_step(step, now, live=self._live)
                case PhaseReport(phase, done):
                    self.progress.record_phase(phase, done, now, live=self._live)
        self._live = True
        named = [report for report in reports if isinstance(report, SavedCheckpoint)]
        return named + self._take_overdue(found, {saved.path for saved in named}, now, final)

    def _read(self, final: bool) -> tuple[list[Report], list[SavedCheckpoint], int]:
        reports = self._events.read()
        if self._agent is not None:
            reports, self._agent = self._agent.read() + reports, None
        self._scanner.ignore(report.path for report in reports if isinstance(report, SavedCheckpoint))
        written = sum(_size(path) for path in (self._folder.events, self._folder.stdout, self._folder.stderr))
        return reports, self._scan(final), written

    def _scan(self, final: bool) -> list[SavedCheckpoint]:
        try:
            return self._scanner.scan(final=final)
        except OSError as error:  # a volume that fails for a while: what was read of the events must not be lost
            log.warning("staging folder not read", folder=self._folder.staging, reason=error)
            return []

    def _take_overdue(
        self, found: list[SavedCheckpoint], named: set[str], now: float, final: bool
    ) -> list[SavedCheckpoint]:
        """Return the checkpoints whose event line is overdue: their program writes none."""
        self._unnamed |= {saved.path: (saved, now) for saved in found}
        waiting = {path: each for path, each in self._unnamed.items() if path not in named}
        due = [saved for saved, since in waiting.values() if final or now - since >= UNNAMED]
        self._unnamed = {path: each for path, each in waiting.items() if each[0] not in due}
        return due

    async def read_stderr(self) -> str:
        """Return the end of what the trainer printed to stderr."""
        return await asyncio.to_thread(_tail, self._folder.stderr)

    async def is_disk_full(self) -> bool:
        """Return whether the disk has no room left for the trainer's files."""
        return await asyncio.to_thread(_is_full, self._folder.path)

    @property
    def oom_kills(self) -> int:
        """Return how many processes of this container the kernel has killed for want of memory since the start."""
        return count_oom_kills() - self._killed_before


def count_oom_kills() -> int:
    """Return the kernel's count for this control group; 0 where it keeps none."""
    try:
        counts = dict(line.split() for line in _CGROUP_EVENTS.read_text().splitlines())
    except OSError:
        return 0
    return int(counts.get("oom_kill", 0))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _NO_ROOM
    except OSError:
        return False


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
