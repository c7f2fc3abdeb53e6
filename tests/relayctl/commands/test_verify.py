"""`relayctl verify` and `pull`: copies of checkpoints that are damaged are found, and never pulled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.relayctl.deployed import relayctl, run_file

pytestmark = pytest.mark.usefixtures("environment")


def test_a_checkpoint_is_pulled_from_its_store_and_its_copies_are_looked_at(tmp_path: Path) -> None:
    """F16: what is damaged in a store is found, and never pulled."""
    share = tmp_path / "share"
    share.mkdir()
    keep = 'checkpoint.keep={"last": 3, "best": 1, "metric": "loss"}'
    relayctl("submit", run_file(tmp_path, "kept"), "--set", f"checkpoint.store={share.as_uri()}", "--set", keep, "-q")
    relayctl("wait", "kept", "--timeout", "60s")
    assert relayctl("pull", "kept@latest", str(tmp_path / "a")).stdout.startswith("step 10: 1 file, 2 B, verified")
    relayctl("pull", "kept@10", str(tmp_path / "a"))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["step"]
    assert (tmp_path / "a" / "step").read_text() == "10"
    assert "it has 5, 10" in relayctl("pull", "kept@7", str(tmp_path / "b"), code=4).stderr
    assert "no checkpoint with a value of loss" in relayctl("pull", "kept@best", str(tmp_path / "b"), code=4).stderr
    assert "RUN@STEP, RUN@latest or RUN@best" in relayctl("pull", "kept@", str(tmp_path / "b"), code=2).stderr
    assert "sound" in relayctl("verify", "kept", "--deep").stdout
    copies = json.loads(relayctl("verify", "kept@10", "-o", "json").stdout)["copies"]
    assert {each["state"] for each in copies} == {"there", "not seen from here"}

    [stored] = share.glob("**/step_00000010/step")
    stored.write_text("11")
    assert "damaged" in relayctl("verify", "kept@10", "--deep", code=1).stdout
    assert "does not match" in relayctl("pull", "kept@10", str(tmp_path / "b"), code=1).stderr
    assert not list((tmp_path / "b").glob("step"))
    stored.unlink()
    assert "not whole" in relayctl("verify", "kept@10", code=1).stdout


def test_a_copy_that_the_coordinator_lacks_is_damaged(folder: Path, tmp_path: Path) -> None:
    """F16: not "out of reach": it answers, and does not have it."""
    relayctl("submit", run_file(tmp_path, "lacking"), "-q")
    relayctl("wait", "lacking", "--timeout", "60s")
    [head] = [
        each
        for each in json.loads(relayctl("checkpoints", "lacking", "-o", "json").stdout)["checkpoints"]
        if each["head"]
    ]
    digest = head["parts"][0]["manifest_digest"].removeprefix("sha256:")
    [blob] = folder.glob(f"**/blobs/*/{digest}")
    aside = blob.rename(tmp_path / "aside")
    assert "damaged" in relayctl("verify", "lacking@latest", code=1).stdout
    shutil.move(aside, blob)  # other runs have the same
    relayctl("verify", "lacking@latest", "--deep")
