"""The kernel tells who writes."""

import asyncio
from pathlib import Path

from agent.events.inotify import WriteWatcher


async def test_writing_is_noticed_once_and_only_where_it_is_watched(tmp_path: Path) -> None:
    watched, other = tmp_path / "watched", tmp_path / "other"
    for folder in (watched, other):
        folder.mkdir()
    notice = WriteWatcher()
    assert notice.watch(watched)
    (other / "x").write_bytes(b"1")
    (watched / "x").write_bytes(b"1")
    await notice.wait_for_write()
    again = asyncio.create_task(notice.wait_for_write())
    done, _ = await asyncio.wait({again}, timeout=0.05)
    assert not done
    with (watched / "x").open("ab") as file:
        file.write(b"2")
    await again
    notice.unwatch(watched)
    notice.close()


def test_what_cannot_be_watched_says_so(tmp_path: Path) -> None:
    assert not WriteWatcher().watch(tmp_path / "none")
