"""`python -m trainers run.yaml`: train what the run file says, here. `python -m trainers check run.yaml`: look,
don't train. `python -m trainers data FILE… --method sft [--model M]`: look at rows.

This process stays small (no ML library): it checks the run file, starts the ranks by `accelerate launch`, turns
SIGTERM and SIGINT into an orderly stop, and ends with 0 (trained), 143 (stopped as asked, saved), 78 (the run file,
its data or model are wrong: trying again will not help) or another code (failed).
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from runfile import RunFile, RunFileErrors, load, parse, presets
from trainers import standalone
from trainers.environment import Contract, under_agent
from trainers.events import EventLog
from trainers.launch import ranks
from trainers.launch.control import FAILED, REFUSED, STOPPED, Control, Outcome


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    asked = sys.argv[1:] if argv is None else argv
    if asked[:1] == ["data"]:
        from trainers import data_report  # needs the libraries; nothing else here does

        return data_report.main(asked[1:])
    arguments = _parser().parse_args(_with_verb(asked))
    hosted = under_agent()
    try:
        run = parse(json.loads(arguments.file.read_text())) if hosted else load(arguments.file, arguments.set)
    except (RunFileErrors, OSError, ValueError) as error:
        return _refused(str(error))
    if run.method == "command":
        return _refused(f"{arguments.file}: method: command runs under an agent; here only training methods do")
    if run.after and not hosted:
        return _refused(f"after: only a coordinator waits for {run.after}; here, leave it out when that is done")
    with tempfile.TemporaryDirectory(prefix="relay-control-") as folder:
        outcome = _train(run, arguments, Control(Path(folder)), hosted)
    if outcome.line:
        print(outcome.line, file=sys.stderr)
    return outcome.code


def _train(run: RunFile, arguments: argparse.Namespace, control: Control, hosted: bool) -> Outcome:
    checking = arguments.verb == "check"
    base = None if hosted else str(arguments.file.absolute().parent)
    if hosted:
        contract = Contract.from_environ(os.environ, arguments.file)
    else:
        root = control.root if checking else Path(arguments.runs)
        contract = standalone.contract(run, arguments.file, root)
        _announce(contract, checking)
    print(*presets.described(run.to_dict()), sep="\n", end="\n" if run.preset else "", flush=True)
    if not checking and (lack := ranks.lack(run.launch)):
        _tell(lack)
        return Outcome(FAILED, lack)
    processes = 1 if checking else max(contract.gpus or 0, 1)
    argv = (
        ranks.check_command()
        if checking
        else ranks.command(processes, ranks.threads_for(processes), run.launch, control.root)
    )
    environ = {**ranks.cpu_defaults(contract.gpus), **os.environ, **contract.to_environ()}
    if contract.gpus is not None and not hosted:  # an agent says which
        environ["CUDA_VISIBLE_DEVICES"] = standalone.first_gpus(contract.gpus)
    outcome = ranks.Ranks(control).run(argv, environ, processes, base)
    if outcome.code == 0 and not hosted and not checking:
        print(f"the result is in {contract.output}")
        if curve := standalone.draw(contract.output.parent):
            print(f"its curve: {os.path.relpath(curve)}")
    elif outcome.code == STOPPED and not hosted:
        print("run the same command again to go on from there", file=sys.stderr)
    return outcome


def _announce(contract: Contract, checking: bool) -> None:
    if not checking:
        start = f"goes on from {contract.resume_from.name}" if contract.resume_from else "starts"
        print(f"{contract.run_id} {start}; its events: {os.path.relpath(contract.events)}", flush=True)


def _refused(report: str) -> int:
    print(report, file=sys.stderr)
    _tell(report)
    return REFUSED


def _tell(report: str) -> None:
    """Where the coordinator looks."""
    if under_agent():
        with EventLog(Path(os.environ["RELAY_EVENTS"])) as events:
            events.message("error", report)


def _with_verb(argv: list[str]) -> list[str]:
    return argv if argv[:1] in (["check"], ["train"], ["-h"], ["--help"]) else ["train", *argv]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["train", "check"], help="train may be left out")
    parser.add_argument("file", type=Path, help="the run file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="put over the file, e.g. options.max_steps=20"
    )
    parser.add_argument(
        "--runs", default="runs", help="where runs keep their folders when no agent does (default: ./runs)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
