"""Folders of checkpoints are whole or absent, whatever another process does with them."""

import threading
from pathlib import Path

from trainers import checkpoints

STEPS = range(1, 200)


def _fill(staging: Path) -> None:
    for step in STEPS:
        folder = staging / checkpoints.folder_name(step)
        folder.mkdir(parents=True)
        for part in range(3):
            (folder / f"part-{part}").touch()


def test_the_newest_stay_and_drafts_go(tmp_path: Path) -> None:
    _fill(tmp_path)
    (tmp_path / ".tmp-step_00000002").mkdir()
    checkpoints.prune_checkpoints(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000198", "step_00000199"]


def test_a_host_that_takes_them_away_meanwhile_gets_whole_ones(tmp_path: Path) -> None:
    """R7. Both sides only rename folders, so no folder is found half removed."""
    staging, taken = tmp_path / "staging", tmp_path / "ckpt"
    _fill(staging)
    taken.mkdir()

    def take() -> None:
        for step in STEPS:
            name = checkpoints.folder_name(step)
            try:
                (staging / name).rename(taken / name)
            except FileNotFoundError:
                continue

    host = threading.Thread(target=take)
    host.start()
    checkpoints.prune_checkpoints(staging, 1)
    host.join()
    assert [path for path in taken.iterdir() if len(list(path.iterdir())) != 3] == []
