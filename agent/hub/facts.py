"""Gathers what a model card says of a run that only the coordinator knows; what cannot be had is left out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from agent.coordinator_client import CALL_TIMEOUT
from agent.wire import Assignment
from relay.logs import get_logger
from relay.v1 import runs_pb2, runs_pb2_grpc
from runfile import metric_names
from runfile.model_card import AttemptSummary

log = get_logger(__name__)

DRAWN = ("train_loss", "eval_loss")
POINTS = 1000  #: points of one line of the picture
Series = dict[str, list[tuple[int, float]]]


class RunHistory:
    """The history of a run across hosts; where the coordinator does not answer, the attempt's own files are read."""

    def __init__(
        self, stub: runs_pb2_grpc.RunsStub, metadata: tuple[tuple[str, str], ...], assignment: Assignment, events: Path
    ) -> None:
        self._stub = stub
        self._metadata = metadata
        self._assignment = assignment
        self._events = events

    async def list_attempts(self) -> Sequence[AttemptSummary]:
        """Return all attempts so far; none when the coordinator does not answer."""
        request = runs_pb2.ListAttemptsRequest(name=self._assignment.message.run)
        try:
            answer = await self._stub.ListAttempts(request, metadata=self._metadata, timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            log.info("attempts not listed", reason=error.details())
            return []
        return [_summarize(attempt) for attempt in answer.attempts]

    async def registered_uris(self) -> list[str] | None:
        """Return the uris on the Hub that the registry names for the run, or None when the coordinator cannot say."""
        checkpoints = runs_pb2.ListCheckpointsRequest(name=self._assignment.message.run, include_superseded=True)
        run = runs_pb2.GetRunRequest(name=self._assignment.message.run)
        try:
            listed = await self._stub.ListCheckpoints(checkpoints, metadata=self._metadata, timeout=CALL_TIMEOUT)
            output = (await self._stub.GetRun(run, metadata=self._metadata, timeout=CALL_TIMEOUT)).output
        except grpc.aio.AioRpcError:
            return None
        uris = [copy.uri for each in listed.checkpoints for part in each.parts for copy in part.copies]
        return [uri for uri in (*uris, output.uri) if uri.startswith("hf://")]

    async def read_evaluation(self, step: int) -> dict[str, float]:
        """Return what this attempt has measured of the weights of a step, which may be after they were saved."""
        return await asyncio.to_thread(_read_own_evaluation, self._events, step)

    async def read_curve(self) -> Series:
        """Return the run's losses, across attempts."""
        request = runs_pb2.ReadMetricsRequest(name=self._assignment.message.run, metrics=DRAWN)
        series: Series = defaultdict(list)
        try:
            async for piece in self._stub.ReadMetrics(request, metadata=self._metadata, timeout=CALL_TIMEOUT):
                series[piece.metric] += zip(piece.steps, piece.values, strict=True)
        except grpc.aio.AioRpcError as error:
            log.info("curve not read", reason=error.details())
            series = await asyncio.to_thread(_read_own_metrics, self._events)
        return {name: _thin(points) for name, points in series.items()}


def _summarize(attempt: runs_pb2.Attempt) -> AttemptSummary:
    return AttemptSummary(
        number=attempt.number,
        hosts=[place.agent.removeprefix("agents/") for place in attempt.places],
        resumed_step=attempt.resumed_step if attempt.resumed_from else None,
        outcome=runs_pb2.Attempt.Outcome.Name(attempt.outcome),
    )


def _read_own_metrics(events: Path) -> Series:
    """Return the losses of this attempt's own file. Blocking."""
    series: Series = defaultdict(list)
    for line in _metric_lines(events):
        for name in DRAWN:
            value = line["values"].get(name)
            with contextlib.suppress(OverflowError):
                if isinstance(value, int | float):
                    series[name].append((line["step"], float(value)))
    return series


def _read_own_evaluation(events: Path, step: int) -> dict[str, float]:
    """Return the results of the evaluation of a step in this attempt's own file. Blocking."""
    found: dict[str, float] = {}
    for line in _metric_lines(events):
        if line["step"] == step:
            found |= {
                name: float(value)
                for name, value in line["values"].items()
                if metric_names.is_evaluation_result(name) and isinstance(value, int | float)
            }
    return found


def _metric_lines(events: Path) -> Iterator[dict[str, Any]]:
    if not events.exists():
        return
    with events.open() as lines:
        for text in lines:
            try:
                line = json.loads(text)
                if line["type"] == "metric" and isinstance(line["step"], int) and isinstance(line["values"], Mapping):
                    yield line
            except (ValueError, TypeError, KeyError, RecursionError):  # half a line, or a program's own
                continue


def _thin(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    kept = list(points)
    return kept[:: len(kept) // POINTS + 1]
