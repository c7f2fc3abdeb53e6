"""All statements that the simulated database can carry out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordinator.store.statement import Statement
from tests.simulation.store import (
    agents,
    checkpoints,
    deployment,
    desired_state,
    events,
    history,
    leases,
    planning,
    requests,
    retention,
    runs,
)
from tests.simulation.store.interpreter import Function

_NOUNS = (
    agents,
    checkpoints,
    deployment,
    events,
    history,
    leases,
    planning,
    requests,
    retention,
    runs,
    desired_state,
)

REPERTOIRE: Mapping[Statement[..., Any], Function[..., Any]] = {
    statement: function for noun in _NOUNS for statement, function in noun.repertoire.items()
}
