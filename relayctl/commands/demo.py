"""`relayctl demo`: train a small model on two hosts, kill one in the middle, and let the other finish the run.

Everything is what a user has: the coordinator with its database, agents that share no folder, the run file of
`examples/`, the Python client. Only the killing is the demo's own.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from relay.v1 import runs_pb2 as pb
from relayctl.client import RelayClient
from relayctl.client.submission import prepare_run, submit_run
from relayctl.commands.exits import ExitCode
from relayctl.commands.watch import Screen, open_screen
from relayctl.local.deployment import (
    Daemon,
    DaemonFailed,
    FolderUnusable,
    LocalCluster,
    LocalHost,
    make_folder,
    start_local_cluster,
)
from relayctl.local.recovery import Recovery, measure_recovery
from relayctl.output.curves import join_segments, plot_in_terminal, write_png
from relayctl.output.format import cut_to_width, format_block, format_count, format_table, make_printable
from relayctl.output.runs import describe_state
from relayctl.output.terminal import Terminal, note, say, show_progress_bars

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
RUN = "orders"
RUN_FILE = EXAMPLES / f"{RUN}.yaml"
BUDGET = 330.0  #: seconds, once installed and with the model prepared
_OVERHEAD = 165.0  #: of them not training: two evaluations, two starts of a trainer, the lease running out
_FEWEST, _MOST = 24, 150  #: steps
_SAVE_EVERY = 6
_ANSWER_WIDTH = 40  #: characters of an answer from before the training that are shown
_LEARNT = 0.8  #: the share of held-out orders that the trained model must have right


class DemoFailed(Exception):
    """The demo did not show what it is there to show."""


@dataclass(frozen=True, slots=True)
class DemoContext:
    """The folder of the demo's files, and the terminal that it prints to."""

    folder: Path
    terminal: Terminal

    @property
    def model(self) -> Path:
        """The folder of the untrained model."""
        return self.folder / "models" / "smollm2"

    @property
    def result(self) -> Path:
        """The folder of the trained adapter."""
        return self.folder / "model"

    async def run_script(self, title: str, *argv: str | Path) -> str:
        """Run one of the demo's scripts and return what it prints; it is killed when the demo is stopped."""
        note(f"{title} …")
        words = [sys.executable, *map(str, argv)]
        job = await Daemon.start(title, words, env={}, log=self.folder / "demo.log")
        try:
            await job.finished()
        finally:
            code = await job.end(signal.SIGKILL)
        if code != 0:
            last = "\n  ".join(list(job.lines)[-8:])
            raise DemoFailed(f"{title}: failed with {code} (log: {job.log})\n  {last}")
        return "\n".join(job.lines)


def demo(
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Keep the demo's files in this folder.")] = Path(".demo"),
) -> None:
    """Train a small model on two hosts, and kill one in the middle.

    The other host finishes the run. The model and a picture of the curve are kept in the folder.
    """
    raise typer.Exit(_run(folder))


def _run(folder: Path) -> ExitCode:
    if not (RUN_FILE).is_file():
        note(f"the demo needs the examples of a checkout of Relay; there is no {RUN_FILE}")
        return ExitCode.ERROR
    context = DemoContext(folder.absolute(), Terminal.current())
    try:
        make_folder(context.folder, "--folder")
        return asyncio.run(_run_interruptible(context))
    except (DemoFailed, DaemonFailed, FolderUnusable) as failure:
        note(str(failure))
        return ExitCode.ERROR
    except (KeyboardInterrupt, asyncio.CancelledError):
        note("stopped; nothing was left running")
        return ExitCode.INTERRUPTED


async def _run_interruptible(context: DemoContext) -> ExitCode:
    task = asyncio.current_task()
    assert task is not None
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, task.cancel)
    await _show_recovery(context)
    return ExitCode.OK


async def _show_recovery(context: DemoContext) -> None:
    if not (context.model / "config.json").is_file():
        await context.run_script(
            "preparing SmolLM2-135M-Instruct (once, about a minute)", EXAMPLES / "smollm2.py", context.model
        )
    began = time.monotonic()
    before = await _ask_model(context, "asking the untrained model 32 held-out orders")
    steps = await _choose_steps(context)
    async with _run_deployment(context) as (cluster, client):
        run, lost = await _train(context, cluster, client, steps)
        await _keep_result(context, client, run)
        segments = await client.read_metrics(run.name, include_superseded=True)
        found = measure_recovery(
            [s for s in segments if s.metric == "train_loss"], await client.list_attempts(run.name), lost
        )
    after = await _ask_model(context, "asking the trained model", "--adapter", str(context.result))
    say(_format_report(context, found, steps, before, after, time.monotonic() - began))
    if not (found.one_curve and found.trained == steps):
        raise DemoFailed(f"the curve is not one curve of {steps} steps: {found}")
    if after["right"] < _LEARNT * after["asked"]:
        raise DemoFailed(f"the model has learnt too little: {after['right']} of {after['asked']} orders are right")


async def _ask_model(context: DemoContext, title: str, *more: str) -> dict[str, Any]:
    printed = (await context.run_script(title, EXAMPLES / "evaluate_orders.py", context.model, *more)).splitlines()
    answer: dict[str, Any] = json.loads("\n".join(printed[printed.index("{") :]))  # warnings may stand before it
    note(f"  {answer['right']} of {answer['asked']} right")
    return answer


async def _choose_steps(context: DemoContext) -> int:
    """Time a few steps and return how many this machine does within the budget."""
    probe = context.folder / "probe"
    shutil.rmtree(probe, ignore_errors=True)
    sets = [f"model.name_or_path={context.model}", "options.max_steps=5", "options.logging_steps=1"]
    sets += ["checkpoint.every=100 steps", "options.eval_steps=100"]
    words = [word for value in sets for word in ("--set", value)]
    await context.run_script("timing the first steps", "-m", "trainers", RUN_FILE, "--runs", probe, *words)
    events = [json.loads(line) for path in probe.rglob("events.jsonl") for line in path.read_text().splitlines()]
    times = sorted(_to_seconds(event["time"]) for event in events if "train_loss" in event.get("values", ()))
    step = statistics.median(later - sooner for sooner, later in pairwise(times))
    steps = int(min(max((BUDGET - _OVERHEAD) / max(step, 0.01), _FEWEST), _MOST))
    note(f"  {step:.1f} s a step: {steps} steps")
    return steps


def _to_seconds(stamp: str | float) -> float:
    return stamp if isinstance(stamp, float | int) else datetime.fromisoformat(stamp).timestamp()


@asynccontextmanager
async def _run_deployment(context: DemoContext) -> AsyncIterator[tuple[LocalCluster, RelayClient]]:
    """Start a coordinator with an embedded Postgres and two hosts; when the block ends the hosts are killed at once."""
    folder = context.folder / "cluster"
    shutil.rmtree(folder, ignore_errors=True)
    note("starting Postgres, the coordinator, host-a and host-b …")
    async with start_local_cluster(folder, ["host-a", "host-b"]) as cluster:
        try:
            async with RelayClient.connect(cluster.coordinator.address) as client:
                say(f"\n  more to see meanwhile: relayctl --coordinator {cluster.coordinator.address} runs\n")
                yield cluster, client
        finally:
            await asyncio.gather(*(host.vanish() for host in cluster.hosts.values()))


async def _train(context: DemoContext, cluster: LocalCluster, client: RelayClient, steps: int) -> tuple[pb.Run, float]:
    """Return the run once it has succeeded on host-b, and when host-a was killed, in seconds since the epoch."""
    sets = [f"model.name_or_path={context.model}", f"options.max_steps={steps}", "options.logging_steps=1"]
    sets += [f"options.eval_steps={max(steps // 2, 1)}", f"checkpoint.every={_SAVE_EVERY} steps"]
    prepared = await prepare_run(RUN_FILE, [*sets, "resources.prefer_hosts=[host-a]"], RUN)
    with show_progress_bars(context.terminal) as bars:
        await submit_run(client, prepared, bars)
    screen = open_screen(RUN, context.terminal)
    try:
        lost = await _watch_and_kill(client, screen, cluster.hosts["host-a"], steps)
    finally:
        screen.close()
    run = await client.get_run(RUN)
    if run.state != pb.Run.SUCCEEDED:
        raise DemoFailed(f"the run {describe_state(run)}; logs are in {context.folder / 'cluster'}")
    if math.isnan(lost):
        raise DemoFailed("the run ended before host-a could be killed")
    return run, lost


async def _watch_and_kill(client: RelayClient, screen: Screen, victim: LocalHost, steps: int) -> float:
    """Watch the run to its end, and kill the first host in the middle, a few steps after a checkpoint has left it."""
    copied, lost = 0, math.nan
    async for update in client.watch_run(RUN):
        if update.HasField("event"):
            screen.show_event(update.event)
            if update.event.kind == pb.RunEvent.COPIED:
                copied = int(float(str(update.event.details["step"])))
            continue
        screen.show_progress(update.progress)
        step = update.progress.step
        if math.isnan(lost) and step >= steps * 0.45 and 0 < copied <= step - 2:
            lost = time.time()
            await victim.vanish()
            say(f"\n  *** step {step}: {victim.name} is killed: agent, shim and trainer, SIGKILL ***\n")
    return lost


async def _keep_result(context: DemoContext, client: RelayClient, run: pb.Run) -> None:
    """Fetch the model into a folder, and draw the curve as a picture and in the terminal."""
    folder = context.result
    shutil.rmtree(folder, ignore_errors=True)
    await client.artifacts.pull(await client.artifacts.read_manifest(run.output.manifest_digest), folder)
    curves = [curve for curve in join_segments(await client.read_metrics(run.name)) if curve.name == "train_loss"]
    await asyncio.to_thread(write_png, curves, context.folder / "curve.png", f"{RUN}: one curve, two hosts")
    say("\n" + plot_in_terminal(curves, context.terminal.width))


def _format_report(
    context: DemoContext, found: Recovery, steps: int, before: dict[str, Any], after: dict[str, Any], seconds: float
) -> str:
    right = f"{before['right']} of {before['asked']} before training, {after['right']} of {after['asked']} after it"
    curve = f"{'yes' if found.one_curve else 'NO'}: {found.trained} of {steps} steps, each once, over two hosts"
    facts = format_block(
        [
            ("steps trained", f"{found.trained}, and {format_count(found.twice, 'step')} of them twice"),
            ("resumed from", f"step {found.resumed_step}"),
            ("kill to first step", f"{found.first_step:.1f} s (30 s of them the lease running out)"),
            ("kill to new ground", f"{found.beyond:.1f} s until the first step that host-a had not done"),
            ("one curve", curve),
            ("held-out orders", right),
            ("took", f"{seconds:.0f} s"),
            ("curve", str(context.folder / "curve.png")),
            ("model", str(context.result)),
        ]
    )
    answers = _format_answers(before["examples"], after["examples"], context.terminal.width)
    return f"\n{answers}\n\n{facts}\n\nload it with\n\n{_format_loading(context)}\n"


def _format_answers(before: Sequence[dict[str, str]], after: Sequence[dict[str, str]], width: int | None) -> str:
    """Return a table of the first held-out orders and what the model made of them, before and after."""
    rows = [
        (first["question"], cut_to_width(make_printable(first["written"]), _ANSWER_WIDTH), then["written"])
        for first, then in zip(before, after, strict=True)
    ]
    return format_table(("ORDER", "BEFORE", "AFTER"), rows, width)


def _format_loading(context: DemoContext) -> str:
    lines: Sequence[str] = (
        "from peft import PeftModel; from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'base = AutoModelForCausalLM.from_pretrained("{context.model}")',
        f'model = PeftModel.from_pretrained(base, "{context.result}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{context.result}")',
    )
    return "\n".join(f"    {line}" for line in lines)
