"""Event lines: what is taken, what is dropped and why."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import event_lines


def _parse(*rows: Any, known: set[str] | None = None) -> event_lines.ParsedLines:
    data = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    return event_lines.parse_lines(data, 0, now=1000.0, known=set() if known is None else known)


def _metric(step: Any = 1, **values: Any) -> dict[str, Any]:
    return {"type": "metric", "step": step, "values": values}


def test_points_keep_their_order_and_their_times() -> None:
    parsed = _parse(_metric(1, loss=2.5), {**_metric(2, loss=2), "time": "2026-01-01T00:00:00Z"})
    assert parsed.series["loss"] == event_lines.MetricSeries([1, 2], [2.5, 2.0], [1000.0, 1767225600.0])
    assert (parsed.step, parsed.dropped) == (2, 0)


def test_nan_and_infinities_are_values_as_words_and_as_python_writes_them() -> None:
    parsed = _parse(
        _metric(1, a="NaN", b="Infinity", c="-Infinity"),
        b'{"type": "metric", "step": 2, "values": {"a": NaN, "b": Infinity}}',
    )
    assert all(math.isnan(value) for value in parsed.series["a"].values)
    assert parsed.series["b"].values == [math.inf, math.inf]
    assert parsed.series["c"].values == [-math.inf]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (b"{torn", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"x" * (event_lines.MAX_LINE + 1), "the limit is"),
        ({"type": "mystery"}, "unknown type"),
        ({"type": "metric", "step": 1}, "values"),
        (_metric(-1, a=1), "step"),
        (_metric(True, a=1), "step"),
        (_metric(2**63, a=1), "step"),
        (_metric(1, a="high"), "not a number"),
        (_metric(1, a=True), "not a number"),
        (_metric(1, a=10**400), "too large"),
        (_metric(1, **{"\n": 1}), "must be at most 128"),
        (_metric(1, **{"x" * 200: 1}), "must be at most 128"),
        ({"type": "message"}, "text"),
        ({"type": "resume", "step": 1}, "fidelity"),
        ({"type": "resume", "step": 1, "fidelity": "good"}, "exact, close or changed"),
        ({"type": "resume", "fidelity": "exact"}, "step"),
        ({"type": "resume", "step": 1, "fidelity": "close", "reasons": "torch"}, "reasons"),
        ({"type": "pin", "name": "Model!", "value": "x"}, "pin"),
        ({"type": "phase"}, "phase"),
        ({"type": "phase", "phase": "A b"}, "phase"),
        ({"type": "phase", "phase": "saving", "done": -1}, "phase"),
        ({"type": "phase", "phase": "saving", "total": "many"}, "phase"),
        ({"type": "sample", "step": 1, "kind": "joke", "prompt": "", "completion": ""}, "kind"),
        ({"type": "sample", "step": 1, "kind": "prompt", "prompt": ["a"], "completion": ""}, "text"),
        ({"type": "sample", "kind": "prompt", "prompt": "", "completion": ""}, "step"),
        ({"type": "sample", "step": 1, "kind": "prompt", "prompt": "", "completion": "", "rewards": [1]}, "rewards"),
        (
            {"type": "sample", "step": 1, "kind": "prompt", "prompt": "", "completion": "", "rewards": {"a": "x"}},
            "number",
        ),
        ({"type": "sample", "step": 1, "kind": "prompt", "prompt": "", "completion": "", "rewards": {"\n": 1}}, "name"),
    ],
)
def test_what_cannot_be_taken_is_counted_and_named(row: Any, why: str) -> None:
    parsed = _parse(_metric(1, good=1), row, _metric(2, good=2))
    assert parsed.dropped == 1
    assert why in parsed.named[0] and parsed.named[0].startswith("byte ")
    assert parsed.series["good"].steps == [1, 2]


def test_limits_of_one_line_of_a_run_and_of_messages() -> None:
    wide = _parse(_metric(1, **{f"m{n}": n for n in range(event_lines.MAX_VALUES + 10)}))
    assert (len(wide.series), wide.dropped) == (event_lines.MAX_VALUES, 10)
    full = {f"old{n}" for n in range(event_lines.MAX_METRICS)}
    late = _parse(_metric(1, new=1, old1=1), known=full)
    assert (list(late.series), late.dropped) == (["old1"], 1)
    chatty = _parse(*({"type": "message", "text": "x" * 5000} for _ in range(event_lines.MAX_MESSAGES + 3)))
    assert (len(chatty.messages), chatty.dropped) == (event_lines.MAX_MESSAGES, 3)
    assert len(chatty.messages[0].text) == event_lines.MAX_TEXT
    assert len(chatty.named) <= event_lines.MAX_REPORTED


def test_pins_progress_and_checkpoints() -> None:
    parsed = _parse(
        {"type": "progress", "step": 7.0, "total": 10, "epoch": 0.7},
        {"type": "pin", "name": "model", "value": "abc"},
        {"type": "pin", "name": "model", "value": "later"},
        {"type": "checkpoint", "step": 7, "path": "step_00000007"},
        b"",
    )
    assert (parsed.step, parsed.total, parsed.epoch) == (7, 10, 0.7)
    assert (parsed.pins, parsed.dropped) == ({"model": "abc"}, 0)


def test_a_phase_adds_nothing() -> None:
    """Its host acts on it."""
    parsed = _parse(
        {"type": "phase", "phase": "evaluating", "done": 3, "total": 20}, {"type": "phase", "phase": "mine"}
    )
    assert parsed == event_lines.ParsedLines()


@given(st.lists(st.binary(max_size=200).map(lambda line: line.replace(b"\n", b"")), max_size=20))
def test_no_bytes_are_a_reason_to_stop(rows: list[bytes]) -> None:
    """F18."""
    _parse(*rows)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
)
_types = st.sampled_from(["metric", "progress", "message", "pin", "phase", "checkpoint", "other"])


@given(
    st.fixed_dictionaries({"type": _types}, optional={k: _json for k in ("step", "values", "time", "text", "total")})
)
def test_no_values_are_a_reason_to_stop(row: dict[str, Any]) -> None:
    """F18."""
    _parse(row)


def test_samples_are_cut_and_no_more_than_so_many_are_taken() -> None:
    sample = {"type": "sample", "step": 3, "kind": "rollout", "prompt": "p" * 10**5, "completion": "c"}
    parsed = _parse({**sample, "rewards": {"exact": 1, "none": None, "odd": "NaN"}, "time": 7})
    [taken] = parsed.samples
    assert (taken.step, taken.kind, len(taken.prompt), taken.completion, taken.time) == (
        *(3, "rollout", event_lines.MAX_SHOWN, "c"),
        7.0,
    )
    assert taken.rewards["exact"] == 1 and math.isnan(taken.rewards["odd"]) and "none" not in taken.rewards
    many = _parse(*[{**sample, "prompt": "p"}] * (event_lines.MAX_SAMPLES + 2))
    assert (len(many.samples), many.dropped) == (event_lines.MAX_SAMPLES, 2)
