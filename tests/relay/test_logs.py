"""Tests of the daemons' log lines: what they look like, and what is bound to them."""

from __future__ import annotations

import asyncio
import io
import logging
import re
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from relay import logs

log = logs.get_logger("agent.here")
library = logging.getLogger("some.library")


@contextmanager
def captured() -> Iterator[io.StringIO]:
    """What is logged meanwhile, as the daemons would write it."""
    written, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(written), root.level
    handler.setFormatter(logs.LineFormatter())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield written
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def words(written: io.StringIO) -> list[str]:
    """The lines without their times and loggers."""
    return [line.partition(": ")[2] for line in written.getvalue().splitlines()]


def test_a_line_has_time_level_logger_words_and_fields() -> None:
    with captured() as written, logs.bind(run="library"):
        log.info("trainer started", pid=7, rate=1 / 3, resumed_from=None)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO agent.here: trainer started pid=7 rate=0.333333 run=library\n",
        written.getvalue(),
    )


@pytest.mark.parametrize(
    ("value", "rendered"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "so"', r'"say \"so\""'),
        ("two\nlines", r'"two\nlines"'),
        ("\x1b[31mred\x9b", r'"\u001b[31mred\u009b"'),
        ("Größe", "Größe"),
        ("die Größe", '"die Größe"'),
        (OSError(28, "No space left"), '"[Errno 28] No space left"'),
    ],
)
def test_a_value_that_could_be_misread_is_quoted(value: object, rendered: str) -> None:
    with captured() as written:
        log.warning("it happened", value=value)
    assert words(written) == [f"it happened value={rendered}"]


def test_a_message_is_one_line_and_an_error_brings_its_traceback() -> None:
    with captured() as written:
        try:
            raise ValueError("x")
        except ValueError as error:
            library.error("%s\nthen", "first", exc_info=error)
    first, traceback, *_, last = written.getvalue().splitlines()
    assert first.endswith(r"ERROR some.library: first\nthen")
    assert traceback.startswith("Traceback") and last == "ValueError: x"


def test_what_is_bound_inside_adds_to_what_is_bound_outside() -> None:
    with captured() as written:
        with logs.bind(run="a", lease="1"):
            with logs.bind(lease="2", attempt=3):
                log.info("inside")
                log.info("its own wins", run="b")
            log.info("outside")
        log.info("nothing is left")
    assert words(written) == [
        "inside run=a lease=2 attempt=3",
        "its own wins run=b lease=2 attempt=3",
        "outside run=a lease=1",
        "nothing is left",
    ]


async def test_child_tasks_threads_and_libraries_inherit_and_two_tasks_do_not_mix() -> None:
    async def attempt(lease: str, turn: asyncio.Barrier) -> None:
        with logs.bind(lease=lease):
            async with asyncio.TaskGroup() as group:
                group.create_task(child(turn))
                await turn.wait()
                await asyncio.to_thread(library.info, "in a thread")
                asyncio.get_running_loop().call_soon(log.info, "in a callback")

    async def child(turn: asyncio.Barrier) -> None:
        await turn.wait()
        log.info("in a task")

    with captured() as written:
        turn = asyncio.Barrier(4)
        await asyncio.gather(attempt("1", turn), attempt("2", turn))
        log.info("outside")
    places = ["in a callback", "in a task", "in a thread"]
    assert sorted(words(written)) == sorted(
        [f"{each} lease={lease}" for each in places for lease in "12"] + ["outside"]
    )


def test_another_executor_inherits_nothing() -> None:
    with captured() as written, logs.bind(lease="1"), ThreadPoolExecutor(1) as pool:
        pool.submit(log.info, "elsewhere").result()
    assert words(written) == ["elsewhere"]


async def test_a_generator_may_be_closed_by_another_task() -> None:
    async def stream() -> AsyncGenerator[int, None]:
        with logs.bind(session="s"):
            yield 1

    opened = stream()
    await asyncio.create_task(anext(opened))
    with captured() as written, logs.bind(run="a"):
        await opened.aclose()
        log.info("closed")
    assert words(written) == ["closed run=a"]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("runs/library/leases/0b7c", {"run": "library", "lease": "0b7c"}),
        ("runs/library", {"run": "library"}),
        ("agents/gpu-1", {"agent": "gpu-1"}),
        ("runs/a/checkpoints/b", {"run": "a", "checkpoint": "b"}),
        ("runs/", {}),
        ("runs/two words", {}),
        ("houses/1", {}),
        ("", {}),
    ],
)
def test_the_fields_of_a_resource_name(name: str, fields: dict[str, str]) -> None:
    assert logs.name_fields(name) == fields


def test_the_loggers_of_a_disabled_level_cost_no_formatting() -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("it is not to be formatted")

    with captured() as written:
        log.debug("too fine", value=Costly())
    assert not written.getvalue()
