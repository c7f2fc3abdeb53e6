"""`python -m trainers run.yaml` trains what a run file describes, on this machine. `python -m trainers check run.yaml`
checks the run file without training. `python -m trainers data FILE… --method sft [--model M]` reports on rows.

This process stays small (it imports no ML library). It checks the run file, starts the ranks by `accelerate launch`,
turns SIGTERM and SIGINT into an orderly stop, and exits with 0 (trained), 143 (stopped on request, saved), 78 (the run
file, its data or its model are wrong, and a retry will not help) or another code (failed).
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from runfile import RunFile, RunFileErrors, load_run_file, parse_run_file, presets
from trainers import standalone
from trainers.environment import AttemptEnvironment, runs_under_agent
from trainers.events import EventLog
from trainers.launch import ranks
from trainers.launch.control import FAILED, REFUSED, STOPPED, ControlFolder, Outcome


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["data"]:
        from trainers import data_report  # imports the ML libraries; nothing else here does

        return data_report.main(argv[1:])
    arguments = _build_parser().parse_args(_add_default_verb(argv))
    under_agent = runs_under_agent()
    try:
        run = (
            parse_run_file(json.loads(arguments.file.read_text()))
            if under_agent
            else load_run_file(arguments.file, arguments.set)
        )
    except (RunFileErrors, OSError, ValueError) as error:
        return _refuse(str(error))
    if run.method == "command":
        return _refuse(f"{arguments.file}: method: command needs an agent; here the method must be one that trains")
    if run.after and not under_agent:
        return _refuse(f"after: only a coordinator can wait for {run.after}; remove it once that run is done")
    with tempfile.TemporaryDirectory(prefix="relay-control-") as folder:
        outcome = _train(run, arguments, ControlFolder(Path(folder)), under_agent)
    if outcome.message:
        print(outcome.message, file=sys.stderr)
    return outcome.code


def _train(run: RunFile, arguments: argparse.Namespace, control: ControlFolder, under_agent: bool) -> Outcome:
    """Start the ranks of one attempt (or of a check), wait for them and return how they ended."""
    checking = arguments.verb == "check"
    base = None if under_agent else str(arguments.file.absolute().parent)
    if under_agent:
        environment = AttemptEnvironment.from_environ(os.environ, arguments.file)
    else:
        root = control.root if checking else Path(arguments.runs)
        environment = standalone.prepare_attempt(run, arguments.file, root)
        _announce_start(environment, checking)
    print(*presets.describe_presets(run.to_dict()), sep="\n", end="\n" if run.preset else "", flush=True)
    if not checking and (missing := ranks.missing_package(run.launch)):
        _report_error(missing)
        return Outcome(FAILED, missing)
    processes = 1 if checking else max(environment.gpus or 0, 1)
    argv = (
        ranks.build_check_command()
        if checking
        else ranks.build_command(processes, ranks.threads_per_process(processes), run.launch, control.root)
    )
    environ = {**ranks.cpu_environment(environment.gpus), **os.environ, **environment.to_environ()}
    if environment.gpus is not None and not under_agent:  # an agent sets it itself
        environ["CUDA_VISIBLE_DEVICES"] = standalone.select_gpus(environment.gpus)
    outcome = ranks.Ranks(control).run(argv, environ, processes, base)
    if outcome.code == 0 and not under_agent and not checking:
        print(f"the result is in {environment.output}")
        if curve := standalone.draw_curve(environment.output.parent):
            print(f"its curve: {os.path.relpath(curve)}")
    elif outcome.code == STOPPED and not under_agent:
        print("run the same command again to resume from there", file=sys.stderr)
    return outcome


def _announce_start(environment: AttemptEnvironment, checking: bool) -> None:
    if not checking:
        start = f"resumes from {environment.resume_from.name}" if environment.resume_from else "starts"
        print(f"{environment.run_id} {start}; its events: {os.path.relpath(environment.events)}", flush=True)


def _refuse(report: str) -> int:
    """Report what is wrong with the run file and return the exit code for it."""
    print(report, file=sys.stderr)
    _report_error(report)
    return REFUSED


def _report_error(report: str) -> None:
    """Append an error event, which the coordinator reads, where an agent started this process."""
    if runs_under_agent():
        with EventLog(Path(os.environ["RELAY_EVENTS"])) as events:
            events.log_message("error", report)


def _add_default_verb(argv: list[str]) -> list[str]:
    return argv if argv[:1] in (["check"], ["train"], ["-h"], ["--help"]) else ["train", *argv]


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["train", "check"], help="what to do (default: train)")
    parser.add_argument("file", type=Path, help="read this run file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the file, e.g. options.max_steps=20",
    )
    parser.add_argument(
        "--runs", default="runs", help="keep the folders of runs here unless an agent keeps them (default: ./runs)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
