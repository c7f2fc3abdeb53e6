"""An unknown verb is answered with the one that was meant."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from relayctl.__main__ import app
from relayctl.command_group import COMMANDS, ELSEWHERE, load_command

run = CliRunner().invoke


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("ls", "runs"), ("submti", "submit"), ("stop", "cancel"), ("tail", "logs -f"), ("checkpoint", "checkpoints")],
)
def test_did_you_mean(typed: str, meant: str) -> None:
    result = run(app, [typed])
    assert result.exit_code == 2
    assert result.stderr.strip() == f'relayctl has no command "{typed}"; did you mean: relayctl {meant}'


def test_a_verb_like_none_is_answered_with_all() -> None:
    assert "known: submit, import, runs, show" in run(app, ["qqqq"]).stderr


def test_every_answer_is_a_verb_that_exists() -> None:
    assert {answer.split()[0] for answer in ELSEWHERE.values()} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_has_the_first_line_of_each_ones_help_whole(name: str) -> None:
    summary = COMMANDS[name][1]
    assert load_command(name).help.splitlines()[0] == summary
    assert summary in run(app, ["--help"]).stdout


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from relayctl.__main__ import app; from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print([m for m in ('grpc', 'matplotlib', 'plotext', 'pydantic', 'yaml', 'rich.live') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_usage_mistakes_are_code_2() -> None:
    assert run(app, ["runs", "--no-such-option"]).exit_code == 2
    assert run(app, ["show"]).exit_code == 2
