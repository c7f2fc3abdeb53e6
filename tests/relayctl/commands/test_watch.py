"""`relayctl watch` and `wait`: how a run is shown until it ends, and the exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from relay.v1 import runs_pb2 as pb
from relayctl.commands.watch import format_event
from relayctl.output.runs import describe_end
from tests.relayctl.deployed import relayctl, run_file
from tests.relayctl.messages import a_run, stamp


def test_events_and_ends() -> None:
    event = pb.RunEvent(time=stamp(), text="granted to host-a (attempt 1)", level="info", kind=pb.RunEvent.GRANTED)
    assert format_event(event).endswith("  granted to host-a (attempt 1)")
    assert "!! " in format_event(pb.RunEvent(time=stamp(), level="error", kind=pb.RunEvent.ENDED))
    done = a_run(state=pb.Run.SUCCEEDED, output=pb.Output(manifest_digest="x", files=2, size=10))
    assert describe_end(done) == "sums succeeded; 2 files, 10 B; fetch it with: relayctl pull sums DIR"
    assert "relayctl why sums" in describe_end(a_run(state=pb.Run.FAILED, reason="EXIT_CODE 3"))


@pytest.mark.usefixtures("environment")
def test_a_failure_has_its_reason_its_code_and_its_last_words(tmp_path: Path) -> None:
    relayctl("submit", run_file(tmp_path, "bad", FAIL="1"), "-q")
    assert "relayctl why bad" in relayctl("wait", "bad", code=10).stdout
    assert "this is why" in relayctl("why", "bad").stdout
    assert "bad" in relayctl("runs", "--state", "failed").stdout
    relayctl("watch", "bad", code=10)


@pytest.mark.usefixtures("environment")
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
