"""`relayctl demo`: a real model on two hosts; one is killed in the middle, and the other finishes the run.

Everything is what a user has: the coordinator with its database, agents that share no folder, the run file of
`examples/`, the Python client. Only the killing is ours.
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
from typing import Any

from relay.v1 import runs_pb2 as pb
from relayctl.client import submission
from relayctl.client.client import RelayClient
from relayctl.commands.exits import ExitCode
from relayctl.commands.watch import LiveScreen, PlainScreen, Screen
from relayctl.local.deployment import Daemon, DaemonFailed, Host, LocalCluster, local_cluster
from relayctl.local.recovery import Recovery, recovery
from relayctl.output import curves as plots
from relayctl.output import views
from relayctl.output.format import block, count
from relayctl.output.terminal import Terminal, byte_bars, note, say

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
RUN = "sums"
BUDGET = 330.0  #: seconds, once installed and with the model prepared
_OVERHEAD = 165.0  #: of them not training: two evaluations, two starts of a trainer, the lease running out
_FEWEST, _MOST = 24, 150  #: steps
_SAVE_EVERY = 6


class DemoFailed(Exception):
    """The demo did not show what it is there to show."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the demo keeps its things, and how it talks."""

    folder: Path
    terminal: Terminal

    @property
    def model(self) -> Path:
        return self.folder / "models" / "smollm2"

    @property
    def result(self) -> Path:
        return self.folder / "model"

    async def script(self, title: str, *argv: str | Path) -> str:
        """What one of our scripts prints; it is gone with us, whatever happens."""
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


def demo(folder: Path) -> ExitCode:
    """Runs it, and leaves the model and the curve in `folder`."""
    if not (EXAMPLES / "sums.yaml").is_file():
        note(f"the demo needs the examples of a checkout of Relay; there is no {EXAMPLES}")
        return ExitCode.ERROR
    stage = Stage(folder.absolute(), Terminal.current())
    try:
        stage.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        note(f"--folder {stage.folder} cannot be used: {error.strerror}; name another folder")
        return ExitCode.ERROR
    try:
        return asyncio.run(_interruptible(stage))
    except (DemoFailed, DaemonFailed) as failure:
        note(str(failure))
        return ExitCode.ERROR
    except (KeyboardInterrupt, asyncio.CancelledError):
        note("stopped; nothing was left running")
        return ExitCode.INTERRUPTED


async def _interruptible(stage: Stage) -> ExitCode:
    task = asyncio.current_task()
    assert task is not None
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, task.cancel)
    await _show(stage)
    return ExitCode.OK


async def _show(stage: Stage) -> None:
    if not (stage.model / "config.json").is_file():
        await stage.script(
            "preparing SmolLM2-135M-Instruct (once, about a minute)", EXAMPLES / "smollm2.py", stage.model
        )
    began = time.monotonic()
    before = await _asked(stage, "asking the untrained model 32 held-out sums")
    steps = await _sized(stage)
    async with _deployed(stage) as (cluster, client):
        run, lost = await _trained(stage, cluster, client, steps)
        await _kept(stage, client, run)
        stretches = await client.metrics(run.name, include_superseded=True)
        found = recovery([s for s in stretches if s.metric == "train_loss"], await client.attempts(run.name), lost)
    after = await _asked(stage, "asking the trained model", "--adapter", str(stage.result))
    say(_report(stage, found, steps, before, after, time.monotonic() - began))
    if not (found.one_curve and found.trained == steps):
        raise DemoFailed(f"the curve is not one curve of {steps} steps: {found}")


async def _asked(stage: Stage, title: str, *more: str) -> dict[str, Any]:
    printed = (await stage.script(title, EXAMPLES / "evaluate_sums.py", stage.model, *more)).splitlines()
    answer: dict[str, Any] = json.loads("\n".join(printed[printed.index("{") :]))  # warnings may stand before it
    sample = answer["examples"][0]
    note(f"  for instance: {sample['question']} {sample['written'].splitlines()[0][:80] if sample['written'] else ''}")
    return answer


async def _sized(stage: Stage) -> int:
    """How many steps this machine does in the time there is, from the first few of them, done alone."""
    probe = stage.folder / "probe"
    shutil.rmtree(probe, ignore_errors=True)
    sets = [f"model.name_or_path={stage.model}", "options.max_steps=5", "options.logging_steps=1"]
    sets += ["checkpoint.every=100 steps", "options.eval_steps=100"]
    words = [word for value in sets for word in ("--set", value)]
    await stage.script("timing the first steps", "-m", "trainers", EXAMPLES / "sums.yaml", "--runs", probe, *words)
    events = [json.loads(line) for path in probe.rglob("events.jsonl") for line in path.read_text().splitlines()]
    times = sorted(_seconds(event["time"]) for event in events if "train_loss" in event.get("values", ()))
    step = statistics.median(later - sooner for sooner, later in pairwise(times))
    steps = int(min(max((BUDGET - _OVERHEAD) / max(step, 0.01), _FEWEST), _MOST))
    note(f"  {step:.1f} s a step: {steps} steps")
    return steps


def _seconds(stamp: str | float) -> float:
    return stamp if isinstance(stamp, float | int) else datetime.fromisoformat(stamp).timestamp()


@asynccontextmanager
async def _deployed(stage: Stage) -> AsyncIterator[tuple[LocalCluster, RelayClient]]:
    """A coordinator with an embedded Postgres and two hosts; the hosts vanish with the block, saved or not."""
    folder = stage.folder / "cluster"
    shutil.rmtree(folder, ignore_errors=True)
    note("starting Postgres, the coordinator, host-a and host-b …")
    async with local_cluster(folder, ["host-a", "host-b"]) as cluster:
        try:
            async with RelayClient.connect(cluster.coordinator.address) as client:
                say(f"\n  more to see meanwhile: relayctl --coordinator {cluster.coordinator.address} runs\n")
                yield cluster, client
        finally:
            await asyncio.gather(*(host.vanish() for host in cluster.hosts.values()))


async def _trained(stage: Stage, cluster: LocalCluster, client: RelayClient, steps: int) -> tuple[pb.Run, float]:
    """The run once it has succeeded on host-b, and when host-a was lost (seconds since the epoch)."""
    sets = [f"model.name_or_path={stage.model}", f"options.max_steps={steps}", "options.logging_steps=1"]
    sets += [f"options.eval_steps={max(steps // 2, 1)}", f"checkpoint.every={_SAVE_EVERY} steps"]
    prepared = await submission.prepare(EXAMPLES / "sums.yaml", [*sets, "resources.prefer_hosts=[host-a]"], RUN)
    with byte_bars(stage.terminal) as bars:
        await submission.submit(client, prepared, bars)
    screen: Screen = LiveScreen(RUN, stage.terminal.width or 80) if stage.terminal.interactive else PlainScreen()
    try:
        lost = await _watched(client, screen, cluster.hosts["host-a"], steps)
    finally:
        screen.close()
    run = await client.run(RUN)
    if run.state != pb.Run.SUCCEEDED:
        raise DemoFailed(f"the run {views.standing(run)}; logs are in {stage.folder / 'cluster'}")
    if math.isnan(lost):
        raise DemoFailed("the run ended before host-a could be killed")
    return run, lost


async def _watched(client: RelayClient, screen: Screen, victim: Host, steps: int) -> float:
    """Watches to the end, and kills the first host in the middle, a few steps past a checkpoint that left it."""
    copied, lost = 0, math.nan
    async for update in client.watch(RUN):
        if update.HasField("event"):
            screen.event(update.event)
            if update.event.kind == pb.RunEvent.COPIED:
                copied = int(float(str(update.event.details["step"])))
            continue
        screen.progress(update.progress)
        step = update.progress.step
        if math.isnan(lost) and step >= steps * 0.45 and 0 < copied <= step - 2:
            lost = time.time()
            await victim.vanish()
            say(f"\n  *** step {step}: {victim.name} is killed: agent, shim and trainer, SIGKILL ***\n")
    return lost


async def _kept(stage: Stage, client: RelayClient, run: pb.Run) -> None:
    """The model in a folder, the curve as a picture and in the terminal."""
    folder = stage.result
    shutil.rmtree(folder, ignore_errors=True)
    await client.artifacts.pull(await client.artifacts.contents(run.output.manifest_digest), folder)
    curves = [curve for curve in views.series(await client.metrics(run.name)) if curve.name == "train_loss"]
    await asyncio.to_thread(plots.png, curves, stage.folder / "curve.png", f"{RUN}: one curve, two hosts")
    say("\n" + plots.in_terminal(curves, stage.terminal.width))


def _report(
    stage: Stage, found: Recovery, steps: int, before: dict[str, Any], after: dict[str, Any], seconds: float
) -> str:
    def held_out(key: str) -> str:
        return f"{before[key]} of {before['asked']} before, {after[key]} of {after['asked']} after"

    curve = f"{'yes' if found.one_curve else 'NO'}: {found.trained} of {steps} steps, each once, over two hosts"
    facts = block(
        [
            ("steps trained", f"{found.trained}, and {count(found.twice, 'step')} of them twice"),
            ("resumed from", f"step {found.resumed_step}"),
            ("kill to first step", f"{found.first_step:.1f} s (30 s of them the lease running out)"),
            ("kill to new ground", f"{found.beyond:.1f} s until the first step that host-a had not done"),
            ("one curve", curve),
            ("right number", held_out("right_number")),
            ("exact format", held_out("exact_format")),
            ("took", f"{seconds:.0f} s"),
            ("curve", str(stage.folder / "curve.png")),
            ("model", str(stage.result)),
        ]
    )
    return f"\n{facts}\n\nload it with\n\n{_loading(stage)}\n"


def _loading(stage: Stage) -> str:
    lines: Sequence[str] = (
        "from peft import PeftModel; from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{stage.model}"), "{stage.result}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{stage.result}")',
    )
    return "\n".join(f"    {line}" for line in lines)
