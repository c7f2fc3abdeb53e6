"""The agent's container, as far as it can be had without one: its entrypoint is run as the container would run it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ENTRYPOINT = Path(__file__).parents[2] / "deploy" / "agent-entrypoint.sh"
CONFIGURATION_ERROR = 78
REPORT = """
import json, os, sys
print(json.dumps([dict(os.environ), sys.argv[1:]]))
"""

Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Runs the entrypoint with nothing in the environment but what is given; `relay-agent` reports what it got."""
    agent = tmp_path / "bin" / "relay-agent"
    agent.parent.mkdir()
    agent.write_text(f"#!{sys.executable} -IS\n{REPORT}")
    agent.chmod(0o755)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {"PATH": f"{agent.parent}:{os.environ['PATH']}", "RELAY_L1_ROOT": str(tmp_path / "root")}
        command = ["bash", str(ENTRYPOINT), *arguments]
        return subprocess.run(
            command, env=inherited | environment, capture_output=True, text=True, check=False, timeout=30
        )

    return run


def parse_environment(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The environment that the agent was started with."""
    assert done.returncode == 0, done.stderr
    environment, _ = json.loads(done.stdout)
    assert isinstance(environment, dict)
    return environment


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("coordinator", "coordinator:7070"),
        ("10.0.0.5:9000", "10.0.0.5:9000"),
        ("http://commander.example.org:8080/api", "commander.example.org:8080"),
        ("https://commander.example.org", "commander.example.org:7070"),
    ],
)
def test_commander_url_names_the_coordinator(start: Start, url: str, address: str) -> None:
    assert parse_environment(start(COMMANDER_URL=url, RELAY_SHARED_SECRET="s"))["RELAY_COORDINATOR"] == address


def test_relays_own_names_win_over_the_old_ones(start: Start) -> None:
    done = start(
        RELAY_COORDINATOR="new:1",
        COMMANDER_URL="old:1",
        RELAY_AGENT_NAME="new-name",
        WORKER_ID="old-name",
        RELAY_SHARED_SECRET="s",
    )
    environment = parse_environment(done)
    assert (environment["RELAY_COORDINATOR"], environment["RELAY_AGENT_NAME"]) == ("new:1", "new-name")


def test_worker_id_names_the_agent_in_lower_case(start: Start) -> None:
    assert (
        parse_environment(start(COMMANDER_URL="c", WORKER_ID="Pod-7", RELAY_SHARED_SECRET="s"))["RELAY_AGENT_NAME"]
        == "pod-7"
    )


def test_without_a_name_the_host_has_one(start: Start) -> None:
    name = parse_environment(start(COMMANDER_URL="c", RELAY_SHARED_SECRET="s"))["RELAY_AGENT_NAME"]
    assert name == os.uname().nodename.lower()


def test_the_runs_folder_is_made(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "volume" / "relay"
    assert parse_environment(start(COMMANDER_URL="c", RELAY_SHARED_SECRET="s", RELAY_L1_ROOT=str(root)))[
        "RELAY_L1_ROOT"
    ] == str(root)
    assert root.is_dir()


def test_arguments_reach_the_agent(start: Start) -> None:
    done = start("--label", "pool=spot", COMMANDER_URL="c", RELAY_SHARED_SECRET="s")
    assert json.loads(done.stdout)[1] == ["--label", "pool=spot"]


def test_a_coordinator_on_this_machine_needs_no_secret(start: Start) -> None:
    assert parse_environment(start(RELAY_COORDINATOR="127.0.0.1:7070"))["RELAY_COORDINATOR"] == "127.0.0.1:7070"


def test_a_secret_may_be_a_file(start: Start) -> None:
    assert start(RELAY_COORDINATOR="far.example.org", RELAY_SHARED_SECRET_FILE="/run/secrets/relay").returncode == 0


def test_what_named_a_run_is_ignored_aloud(start: Start) -> None:
    done = start(COMMANDER_URL="c", RELAY_SHARED_SECRET="s", RUN_ID="r1", MODE="sft")
    assert not {"RUN_ID", "MODE"} & parse_environment(done).keys()
    assert "RUN_ID is ignored" in done.stderr
    assert "relayctl submit" in done.stderr


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, "RELAY_COORDINATOR is not set"),
        ({"RELAY_COORDINATOR": "host:port", "RELAY_SHARED_SECRET": "s"}, "'host:port' is not an address"),
        ({"RELAY_COORDINATOR": "far.example.org:7070"}, "RELAY_SHARED_SECRET is not set"),
        ({"RELAY_COORDINATOR": "c", "RELAY_SHARED_SECRET": "s", "WORKER_ID": "a b"}, "'a b' cannot name an agent"),
        (
            {"RELAY_COORDINATOR": "c", "RELAY_SHARED_SECRET": "s", "RELAY_L1_ROOT": "/proc/relay"},
            "RELAY_L1_ROOT=/proc/relay",
        ),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_78(start: Start, environment: dict[str, str], names: str) -> None:
    done = start(**environment)
    assert done.returncode == CONFIGURATION_ERROR
    assert names in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_secret_is_never_shown(start: Start) -> None:
    done = start(RELAY_COORDINATOR="c", RELAY_SHARED_SECRET="canary", WORKER_ID="a b")
    assert "canary" not in done.stdout + done.stderr


def test_signals_reach_the_agent_itself(start: Start, tmp_path: Path) -> None:
    """The shell gives way to the agent: the process the container signals is the agent's own."""
    agent = tmp_path / "bin" / "relay-agent"
    agent.write_text('#!/bin/sh\nkill -TERM "$$"\n')
    assert start(RELAY_COORDINATOR="127.0.0.1:1").returncode == -15
