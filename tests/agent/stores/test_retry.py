"""A store that is away is waited for, and two events say so."""

import asyncio
import json
from pathlib import Path

from agent.events.journal import Journal
from agent.stores.retry import StoreRetry
from storage.base import StoreUnavailable


class Store:
    """Away for so many tries, each of which takes a quarter of a minute."""

    def __init__(self, away: int) -> None:
        self.away = away
        self.tries = 0

    def now(self) -> float:
        return self.tries * 15.0

    async def put(self) -> str:
        self.tries += 1
        if self.tries <= self.away:
            raise StoreUnavailable("no answer")
        return "uri"


def patience(store: Store, tmp_path: Path) -> StoreRetry:
    return StoreRetry(Journal(tmp_path / "agent.jsonl", lambda: 0.0), store.now, first_pause=0.0)


def records(tmp_path: Path) -> list[tuple[str, str, str]]:
    path = tmp_path / "agent.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    return [(line["type"], line["level"], line["text"]) for line in lines]


async def test_it_is_told_once_that_it_fails_and_once_that_it_works(tmp_path: Path) -> None:
    store = Store(away=6)
    assert await patience(store, tmp_path).run("the upload of step 4 to s3://", store.put) == "uri"
    assert records(tmp_path) == [
        ("upload_failing", "warning", "the upload of step 4 to s3:// fails, and is tried again: no answer"),
        ("message", "info", "the upload of step 4 to s3:// works again"),
    ]


async def test_of_a_short_absence_nothing_is_told(tmp_path: Path) -> None:
    store = Store(away=1)
    assert await patience(store, tmp_path).run("the upload", store.put) == "uri"
    assert records(tmp_path) == []


async def test_it_gives_up_for_something_newer(tmp_path: Path) -> None:
    store, newer = Store(away=10**9), asyncio.Event()
    patient = StoreRetry(Journal(tmp_path / "agent.jsonl", lambda: 0.0), store.now, first_pause=60.0)
    waiting = asyncio.create_task(patient.run("the upload", store.put, newer.wait))
    newer.set()
    assert await waiting is None and store.tries == 1


async def test_a_store_that_says_when_to_come_back_is_not_asked_before(tmp_path: Path) -> None:
    """F22: 429 with a Retry-After."""
    tries, newer = 0, asyncio.Event()

    async def put() -> str:
        nonlocal tries
        tries += 1
        asyncio.get_running_loop().call_later(0.1, newer.set)
        raise StoreUnavailable("too many requests", 3600.0)

    assert await patience(Store(away=0), tmp_path).run("the upload", put, newer.wait) is None
    assert tries == 1
