"""The kernel tells who writes."""

import asyncio
from pathlib import Path

from agent.events.inotify import Notice


async def test_writing_is_noticed_once_and_only_where_it_is_watched(tmp_path: Path) -> None:
    watched, other = tmp_path / "watched", tmp_path / "other"
    for folder in (watched, other):
        folder.mkdir()
    notice = Notice()
    assert notice.watch(watched)
    (other / "x").write_bytes(b"1")
    (watched / "x").write_bytes(b"1")
    await notice.written()
    again = asyncio.create_task(notice.written())
    done, _ = await asyncio.wait({again}, timeout=0.05)
    assert not done
    with (watched / "x").open("ab") as file:
        file.write(b"2")
    await again
    notice.unwatch(watched)
    notice.close()


def test_what_cannot_be_watched_says_so(tmp_path: Path) -> None:
    assert not Notice().watch(tmp_path / "none")
