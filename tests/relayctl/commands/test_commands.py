"""The commands against a real deployment, which `relayctl up` brings up and takes down."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.relayctl.deployed import relayctl, run_file

pytestmark = pytest.mark.usefixtures("environment")


def test_a_run_from_submission_to_its_result(tmp_path: Path) -> None:
    file = run_file(tmp_path, "first")
    rehearsal = relayctl("submit", file, "--dry-run").stdout
    assert "1 file" in rehearsal and "can run now on local-1" in rehearsal and "submitted" not in rehearsal
    relayctl("show", "first", code=4)
    watched = relayctl("submit", file, "--watch").stdout
    assert "submitted first; watch it with: relayctl watch first" in watched
    assert "step 10 is saved" in watched and "first succeeded; 1 file" in watched
    assert relayctl("pull", "first", str(tmp_path / "out")).stdout.startswith("1 file, 4 B, verified")
    assert (tmp_path / "out" / "result.txt").read_text() == "done"
    [curve] = json.loads(relayctl("metrics", "first", "-o", "json").stdout)["metrics"]
    assert curve["steps"] == list(range(1, 13)) and curve["values"] == [1 / step for step in range(1, 13)]
    assert "train_loss" in relayctl("metrics", "first", "--plot").stdout
    relayctl("metrics", "first", "--png", str(tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "it has train_loss" in relayctl("metrics", "first", "loss", code=2).stderr
    assert relayctl("samples", "first").stdout == "step 10  rollout  exact 0.25\n    2 +\n    2\n  → 10\n"
    assert [each["step"] for each in json.loads(relayctl("samples", "first", "-ao", "json").stdout)["samples"]] == [
        5,
        10,
    ]
    assert relayctl("samples", "first", "--step", "5", "--kind", "rollout").stdout.count("→") == 1
    assert "no such samples" in relayctl("samples", "first", "--step", "6").stderr
    assert "prompt, rollout" in relayctl("samples", "first", "--kind", "joke", code=4).stderr
    steps = [
        point["step"] for point in json.loads(relayctl("checkpoints", "first", "-o", "json").stdout)["checkpoints"]
    ]
    assert steps == [5, 10]
    assert "head, one of the last 3" in relayctl("checkpoints", "first").stdout
    assert relayctl("checkpoints", "pin", "first@5", "--reason", "good").stdout == "step 5 of first stays\n"
    assert "pinned: good" in relayctl("checkpoints", "first").stdout
    assert json.loads(relayctl("checkpoints", "unpin", "first@5", "-o", "json").stdout)["pinned"] is False
    assert "it has 5, 10" in relayctl("checkpoints", "pin", "first@7", code=4).stderr
    assert "write RUN@STEP" in relayctl("checkpoints", "pin", "first", code=2).stderr
    assert "did you mean: relayctl checkpoints pin first@5" in relayctl("checkpoints", "pni", "first@5", code=2).stderr
    assert relayctl("logs", "first").stdout == "begins at 0\n"
    assert json.loads(relayctl("logs", "first", "-o", "jsonl").stdout)["text"] == "begins at 0"
    assert relayctl("wait", "first", "--timeout", "20s").stdout.startswith("first succeeded")
    assert yaml.safe_load(relayctl("show", "first", "--spec").stdout)["env"]["STEPS"] == "12"


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


def test_submitting_the_same_again_starts_nothing_and_something_else_is_refused(tmp_path: Path) -> None:
    file = run_file(tmp_path, "again")
    relayctl("submit", file, "-q")
    relayctl("wait", "again")
    said = relayctl("submit", file).stdout
    assert "again had been submitted already and it succeeded; nothing new was started; to run it again: --name" in said
    refused = relayctl("submit", file, "--set", "env.STEPS=13", code=4)
    assert "again" in refused.stderr and "--name" in refused.stderr
    assert relayctl("submit", file, "--name", "again-2", "-q").stdout == "again-2\n"
    relayctl("wait", "again-2")


def test_a_failure_has_its_reason_its_code_and_its_last_words(tmp_path: Path) -> None:
    relayctl("submit", run_file(tmp_path, "bad", FAIL="1"), "-q")
    assert "relayctl why bad" in relayctl("wait", "bad", code=10).stdout
    assert "this is why" in relayctl("why", "bad").stdout
    assert "bad" in relayctl("runs", "--state", "failed").stdout
    relayctl("watch", "bad", code=10)


def test_pausing_resuming_and_cancelling(tmp_path: Path) -> None:
    relayctl("submit", run_file(tmp_path, "held", HOLD_AT="7", STEPS="1000000"), "-q")
    relayctl("wait", "held", "--timeout", "300ms", code=12)
    assert json.loads(relayctl("pause", "held", "-o", "json").stdout)["wanted"] == "pause"
    relayctl("resume", "held")
    assert "cancel" in relayctl("cancel", "held", "--reason", "enough").stdout
    assert "held was cancelled by an operator: enough" in relayctl("wait", "held", code=11).stdout


def test_on_a_terminal_there_is_a_bar_and_leaving_says_that_the_run_goes_on(tmp_path: Path) -> None:
    relayctl("submit", run_file(tmp_path, "shown", HOLD_AT="7", STEPS="99"), "-q")
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "relayctl", "watch", "shown"]
    env = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        while b"7/99" not in shown:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # how Linux says that the other end of a terminal is closed
            while piece := os.read(ours, 65536):
                shown += piece
    os.close(ours)
    assert process.returncode == 130
    assert b"train_loss 0.1429" in shown
    assert b"the run continues; watch it again with: relayctl watch shown" in shown
    assert json.loads(relayctl("show", "shown", "-o", "json").stdout)["state"] == "running"
    relayctl("cancel", "shown")
    relayctl("wait", "shown", code=11)


def test_a_log_is_followed_until_the_run_ends(tmp_path: Path) -> None:
    relayctl("submit", run_file(tmp_path, "followed"), "-q")
    assert relayctl("logs", "followed", "-f").stdout == "begins at 0\n"
    assert relayctl("logs", "followed", "-n", "1", "--timestamps").stdout.endswith("  begins at 0\n")


def test_lists_for_people_and_for_programs(tmp_path: Path) -> None:
    relayctl("submit", run_file(tmp_path, "listed"), "-q")
    relayctl("wait", "listed")
    assert "listed" in relayctl("runs", "-l", "kind=test", "--since", "1h").stdout
    assert relayctl("runs", "-q", "-n", "1").stdout == "listed\n"
    assert json.loads(relayctl("runs", "-l", "kind=none", "-o", "json").stdout) == {"runs": []}
    assert relayctl("runs", "-l", "kind=none", "-q").stdout == ""
    assert relayctl("runs", "-l", "kind=none").stdout == "no runs match\n"
    assert "known: queued, running" in relayctl("runs", "--state", "done", code=2).stderr
    assert "key=value" in relayctl("runs", "-l", "kind", code=2).stderr
    assert "carries its unit" in relayctl("runs", "--since", "5", code=2).stderr
    assert relayctl("agents", "-q").stdout == "local-1\n"
    assert relayctl("checkpoints", "listed", "-o", "jsonl").stdout.count("\n") == 2
    assert relayctl("agents", "-l", "kind=none", "-q").stdout == ""
    assert relayctl("agents", "-l", "kind=none").stdout == "no agents match\n"
    assert yaml.safe_load(relayctl("agents", "-o", "yaml").stdout)["agents"][0]["state"] == "ready"


def test_what_is_wrong_is_said_and_nothing_is_created(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("version: relay/v1\nname: never\nmethod: command\ncommand: [a]\ngpus: 1\nfiles: [none.py]\n")
    said = relayctl("submit", str(file), code=1).stderr
    assert "2 mistakes" in said and "line 5" in said and "resources.gpus_per_node" in said and "none.py" in said
    assert "relayctl runs -a" in relayctl("show", "never", code=4).stderr
    relayctl("pull", "never", str(tmp_path), code=4)


def test_a_server_that_is_down_is_one_line() -> None:
    said = relayctl("--coordinator", "127.0.0.1:9", "runs", code=3).stderr
    assert said.count("\n") == 1 and "127.0.0.1:9 (Connection refused)" in said


def test_the_context_says_where_it_comes_from(deployment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert json.loads(relayctl("config", "-o", "json").stdout) == {
        "coordinator": deployment,
        "secret": "not set",
        "origin": "RELAY_COORDINATOR",
    }
    monkeypatch.delenv("RELAY_COORDINATOR")
    assert "127.0.0.1:7070" in relayctl("config").stdout
    relayctl("config", "--use", "host:1")
    assert relayctl("config", "-o", "name").stdout == "host:1\n"
    relayctl("config", "--use", "nonsense", code=2)
    assert relayctl("--coordinator", "nonsense", "runs", code=2).stderr.startswith("--coordinator: an address reads")
    (tmp_path / "relay" / "context.json").write_text("[")
    assert "is not a context" in relayctl("config", code=2).stderr


def test_up_says_in_words_what_did_not_start() -> None:
    with tempfile.TemporaryDirectory(prefix="relay-up-") as folder:
        said = relayctl("up", "--data-dir", folder, "--listen", "256.0.0.1:99", code=1).stderr
    assert "coordinator ended" in said and "256.0.0.1" in said
    relayctl("up", "--data-dir", "/" + "x" * 90, code=2)
    assert "known: default" in relayctl("up", "--timing", "fast", code=2).stderr
    assert "HOST:PORT" in relayctl("up", "--listen", "nonsense", code=2).stderr
    assert "--folder /proc/none cannot be used" in relayctl("demo", "--folder", "/proc/none", code=1).stderr
    said = relayctl("up", "--data-dir", "/proc/none", code=1).stderr
    assert said == "--data-dir /proc/none cannot be used: No such file or directory; name another folder\n"
