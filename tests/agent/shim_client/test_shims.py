"""Shims with real trainers, real sockets and real signals: the package `agent.shim` and the agent's side together."""

import asyncio
import json
import os
import signal
import socket
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.shim.processes import boottime, process
from agent.shim_client.jobs import Record
from agent.shim_client.orphans import find_orphans, wait_gone
from agent.shim_client.shims import (
    UNRESPONSIVE_LIMIT,
    Exit,
    Job,
    Shim,
    ShimGone,
    ShimRefused,
    ShimUnresponsive,
    SpareShim,
    discover,
    prepare_runtime_dir,
)

PATH = os.environ["PATH"]
WITHIN = 90.0  #: seconds, for every fact awaited
CAP_SYS_NICE = 23
ROOT = str(Path(__file__).resolve().parents[3])


class ReportPipe:
    """What the processes under test say, line by line, through a named pipe: facts to await."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0)
        self._reader = asyncio.StreamReader()

    async def open(self) -> None:
        protocol = asyncio.StreamReaderProtocol(self._reader)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, self._file)

    async def line(self) -> str:
        async with asyncio.timeout(WITHIN):
            return (await self._reader.readline()).decode().strip()

    def close(self) -> None:
        self._transport.close()


@pytest.fixture
async def reports(tmp_path: Path) -> AsyncIterator[ReportPipe]:
    pipe = ReportPipe(tmp_path / "told")
    await pipe.open()
    yield pipe
    pipe.close()


@pytest.fixture
def runtime_dir(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "run"
    prepare_runtime_dir(path)
    yield path
    for left in path.glob("*.json"):
        record = json.loads(left.read_text())
        for survivor in find_orphans(left.stem, None):
            os.kill(survivor.pid, signal.SIGKILL)
        if process(record["shim_pid"]) is not None:
            os.kill(record["shim_pid"], signal.SIGKILL)


@pytest.fixture
def job(tmp_path: Path, reports: ReportPipe) -> Job:
    """A trainer that says it runs, and then waits for ever."""
    folder = tmp_path / "attempt"
    folder.mkdir()
    environment = {"PATH": PATH, "TOLD": str(reports.path)}
    return Job(
        lease="lease-1",
        argv=("sh", "-c", "echo up $$ > $TOLD; exec tail -f /dev/null"),
        cwd=tmp_path,
        env=environment,
        folder=folder,
    )


def python(script: str) -> tuple[str, ...]:
    """Argv of a Python trainer; `tell(text)` is a line through the pipe."""
    prelude = """
        import os, signal, sys
        def tell(text):
            with open(os.environ["TOLD"], "w") as pipe:
                pipe.write(f"{text}\\n")
    """
    return (sys.executable, "-I", "-S", "-c", textwrap.dedent(prelude) + textwrap.dedent(script))


async def dead(pid: int) -> None:
    """Until this process has ended."""
    target = process(pid)
    if target is not None:
        async with asyncio.timeout(WITHIN):
            await wait_gone(target)


async def ended(shim: Shim) -> Exit:
    async with asyncio.timeout(WITHIN):
        return await shim.wait()


def left_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def shim_pid(shim: Shim) -> int:
    assert shim.record.shim_pid is not None
    return shim.record.shim_pid


# --- a life without incident -----------------------------------------------------------------


async def test_a_trainer_runs_and_its_exit_is_kept(job: Job, runtime_dir: Path) -> None:
    script = 'echo out; echo err >&2; echo "$GREETING $RELAY_SHIM $(pwd)"; cat; exit 7'
    shim = await Shim.start(
        replace(job, argv=("sh", "-c", script), env={"PATH": PATH, "GREETING": "hello"}), runtime_dir
    )
    how = await ended(shim)
    assert (how.lease, how.code, how.signal, how.stop_reason, how.kill_reason) == ("lease-1", 7, None, None, None)
    assert how.started and how.ended and how.reaped and how.started <= how.ended <= how.reaped
    assert (job.folder / "stdout.log").read_text() == f"out\nhello {shim.path.stem} {job.cwd}\n"
    assert (job.folder / "stderr.log").read_text() == "err\n"
    assert json.loads((job.folder / "exit.json").read_text())["code"] == 7
    assert (await shim.status()).phase == "ended"
    await shim.forget()
    assert left_in(runtime_dir) == []


async def test_a_full_disk_costs_the_files_and_not_the_answer(job: Job, runtime_dir: Path) -> None:
    """F15: neither its exit nor what it has to say about that can be written."""
    (job.folder / "exit.json").mkdir()
    (job.folder / "shim.log").symlink_to("/dev/full")
    shim = await Shim.start(replace(job, argv=("sh", "-c", "exit 7")), runtime_dir)
    how = await ended(shim)
    assert how.code == 7 and not how.lost
    await shim.forget()


async def test_logs_are_appended_to(job: Job, runtime_dir: Path) -> None:
    (job.folder / "stdout.log").write_text("before\n")
    shim = await Shim.start(replace(job, argv=("echo", "after")), runtime_dir)
    await ended(shim)
    assert (job.folder / "stdout.log").read_text() == "before\nafter\n"
    await shim.forget()


async def test_f1_a_killed_trainer_is_reported_with_its_signal(
    job: Job, reports: ReportPipe, runtime_dir: Path
) -> None:
    shim = await Shim.start(job, runtime_dir)
    os.kill(int((await reports.line()).split()[1]), signal.SIGKILL)
    how = await ended(shim)
    assert (how.code, how.signal, how.succeeded, how.lost) == (None, signal.SIGKILL, False, False)
    await shim.forget()


@pytest.mark.parametrize(
    ("broken", "says"),
    [({"argv": ("no-such-program",)}, "no-such-program"), ({"cwd": Path("/no/such/folder")}, "/no/such/folder")],
)
async def test_a_trainer_that_cannot_start_has_ended(
    broken: dict[str, object], says: str, job: Job, runtime_dir: Path
) -> None:
    shim = await Shim.start(replace(job, **broken), runtime_dir)  # type: ignore[arg-type]
    how = await ended(shim)
    assert how.code == 127 and how.error is not None and says in how.error
    assert how.error.endswith(": No such file or directory") and "Errno" not in how.error
    await shim.forget()


async def test_signals_that_shim_or_agent_ignore_are_not_ignored_by_the_trainer(job: Job, runtime_dir: Path) -> None:
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # as of an agent that a script has put in the background
    shim = await Shim.start(replace(job, argv=("grep", "SigIgn", "/proc/self/status")), runtime_dir)
    signal.signal(signal.SIGQUIT, before)
    await ended(shim)
    ignored = int((job.folder / "stdout.log").read_text().split()[1], 16)
    assert not any(ignored >> (signum - 1) & 1 for signum in signal.valid_signals() if signum < 32)
    await shim.forget()


# --- stopping and killing --------------------------------------------------------------------


async def test_stop_asks_the_trainer_alone_and_gives_it_its_grace(
    job: Job, reports: ReportPipe, runtime_dir: Path
) -> None:
    script = """
        signal.signal(signal.SIGTERM, lambda *_: (tell("asked"), sys.exit(3)))
        tell("up")
        while True: signal.pause()
    """
    shim = await Shim.start(replace(job, argv=python(script)), runtime_dir)
    assert await reports.line() == "up"
    await shim.stop(60, "preempt")
    await shim.stop(60, "cancel")
    assert await reports.line() == "asked"
    how = await ended(shim)
    assert (how.code, how.stop_reason, how.kill_reason) == (3, "preempt", None)
    await shim.forget()


async def test_after_the_grace_the_whole_tree_is_killed(job: Job, reports: ReportPipe, runtime_dir: Path) -> None:
    """A later stop may only shorten the grace of an earlier one."""
    script = "trap '' TERM; setsid sh -c 'echo $$ > $TOLD; exec tail -f /dev/null' & wait; tail -f /dev/null"
    shim = await Shim.start(replace(job, argv=("sh", "-c", script)), runtime_dir)
    grandchild = int(await reports.line())
    await shim.stop(3600)
    await shim.stop(0.05)
    how = await ended(shim)
    assert (how.signal, how.stop_reason, how.kill_reason) == (signal.SIGKILL, "asked", "grace over")
    assert process(grandchild) is None
    await shim.forget()


async def test_what_sets_itself_apart_is_killed_too(job: Job, reports: ReportPipe, runtime_dir: Path) -> None:
    """A double fork into a session of its own, out of the process group, its environment cleared."""
    script = """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", f'''
        import os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open({os.environ["TOLD"]!r}, "w").write(str(os.getpid()) + chr(10))
        signal.pause()'''.replace("\\n        ", "\\n")], {})
            os._exit(0)
        signal.pause()
    """
    shim = await Shim.start(replace(job, argv=python(script)), runtime_dir)
    daemon = int(await reports.line())
    await shim.kill("stalled")
    how = await ended(shim)
    assert (how.signal, how.kill_reason) == (signal.SIGKILL, "stalled")
    assert process(daemon) is None
    await shim.forget()


async def test_a_tree_that_keeps_forking_is_killed_to_the_last(
    job: Job, reports: ReportPipe, runtime_dir: Path
) -> None:
    """Eight runners, each forking its successor into a session of its own and ending, a hundred times a second."""
    script = """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        for _ in range(8):
            if os.fork() == 0:
                while True:
                    signal.setitimer(signal.ITIMER_REAL, 0.01)
                    signal.sigwait([signal.SIGALRM])
                    if os.fork(): os._exit(0)
                    os.setsid()
        tell("up")
        signal.pause()
    """
    shim = await Shim.start(replace(job, argv=python(script)), runtime_dir)
    await reports.line()
    await shim.kill()
    how = await ended(shim)
    assert how.kill_reason == "asked"
    assert find_orphans(shim.path.stem, shim.record) == []
    await shim.forget()


async def test_what_a_trainer_leaves_behind_is_ended(job: Job, reports: ReportPipe, runtime_dir: Path) -> None:
    shim = await Shim.start(
        replace(job, argv=("sh", "-c", "setsid tail -f /dev/null & echo $! > $TOLD; exit 0")), runtime_dir
    )
    left = int(await reports.line())
    how = await ended(shim)
    assert how.succeeded and how.kill_reason is None
    assert process(left) is None
    await shim.forget()


async def test_the_program_of_a_shell_that_died_of_sigterm_still_has_the_grace(
    job: Job, reports: ReportPipe, runtime_dir: Path
) -> None:
    """`bash run.sh` ends at SIGTERM at once; the trainer below it is asked too, and may save."""
    inner = """
        signal.signal(signal.SIGTERM, lambda *_: (tell("saved"), sys.exit(0)))
        tell("up")
        while True: signal.pause()
    """
    script = '"$0" "$@"; echo never'
    shim = await Shim.start(replace(job, argv=("bash", "-c", script, *python(inner))), runtime_dir)
    assert await reports.line() == "up"
    await shim.stop(60)
    assert await reports.line() == "saved"
    how = await ended(shim)
    assert (how.signal, how.stop_reason, how.kill_reason) == (signal.SIGTERM, "asked", None)
    await shim.forget()


async def test_a_sigterm_to_the_shim_is_a_stop(job: Job, reports: ReportPipe, runtime_dir: Path) -> None:
    shim = await Shim.start(job, runtime_dir)
    await reports.line()
    os.kill(shim_pid(shim), signal.SIGTERM)
    how = await ended(shim)
    assert (how.signal, how.stop_reason) == (signal.SIGTERM, "signal")
    await shim.forget()


async def test_dump_says_what_the_tree_does_and_rings_who_listens(
    job: Job, reports: ReportPipe, runtime_dir: Path
) -> None:
    script = """
        deaf = os.spawnv(os.P_NOWAIT, "/usr/bin/env", ["env", "tail", "-f", "/dev/null"])
        signal.signal(signal.SIGUSR1, lambda *_: tell("rung"))
        tell("up")
        while True: signal.pause()
    """
    shim = await Shim.start(replace(job, argv=python(script), dump_signal=signal.SIGUSR1), runtime_dir)
    assert await reports.line() == "up"
    shown = json.loads((await shim.dump()).read_text())
    assert await reports.line() == "rung"
    assert len(shown["processes"]) == 2 and all("State:" in each["status"] for each in shown["processes"])
    assert (await shim.status()).phase == "running"
    await shim.kill()
    assert (await ended(shim)).signal == signal.SIGKILL
    await shim.forget()


# --- the deadline under policy `stop` --------------------------------------------------------


async def test_s3_the_shim_kills_by_the_deadline_on_its_own(job: Job, reports: ReportPipe, runtime_dir: Path) -> None:
    """F3: the agent says nothing more, be it frozen, starved or gone."""
    deadline = boottime() + 0.5
    shim = await Shim.start(replace(job, policy="stop", trust=deadline), runtime_dir)
    assert shim.record.pid is not None
    await dead(shim.record.pid)
    how = await ended(shim)
    assert (how.trust_lost, how.kill_reason, how.signal) == (True, "trust lapsed", signal.SIGKILL)
    assert how.trust == deadline and how.kill_began is not None and deadline <= how.kill_began < deadline + WITHIN
    assert not await shim.trust(boottime() + 3600)
    await shim.forget()


async def test_s3_nothing_is_started_on_an_old_promise(job: Job, runtime_dir: Path) -> None:
    """F4: the host slept between the agent's order and its shim."""
    begun = job.folder / "begun"
    late = replace(job, argv=("touch", str(begun)), policy="stop", trust=boottime() - 0.1)
    shim = await Shim.start(late, runtime_dir)
    how = await ended(shim)
    assert (how.trust_lost, how.kill_reason, how.code) == (True, "trust lapsed", 127)
    assert not await asyncio.to_thread(begun.exists) and shim.record.pid is None
    await shim.forget()


def may_take_priority() -> bool:
    """Whether this user may take real-time priority."""
    with open("/proc/self/status") as file:
        (capabilities,) = (int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return bool(capabilities >> CAP_SYS_NICE & 1)


@pytest.mark.skipif(not may_take_priority(), reason="needs CAP_SYS_NICE")
async def test_s3_a_shim_with_a_deadline_outranks_its_busy_trainer(
    job: Job, reports: ReportPipe, runtime_dir: Path
) -> None:
    """And that trainer does not outrank the rest of the host."""
    trusted = replace(job, policy="stop", trust=boottime() + WITHIN)
    for each, policy in ((job, os.SCHED_OTHER), (trusted, os.SCHED_FIFO)):
        shim = await Shim.start(each, runtime_dir)
        trainer = int((await reports.line()).split()[1])
        assert os.sched_getscheduler(shim_pid(shim)) & ~os.SCHED_RESET_ON_FORK == policy
        assert os.sched_getscheduler(trainer) == os.SCHED_OTHER
        await shim.kill()
        await ended(shim)
        await shim.forget()


async def test_renewed_trust_holds_and_is_never_shortened(job: Job, reports: ReportPipe, runtime_dir: Path) -> None:
    first = boottime() + WITHIN
    shim = await Shim.start(replace(job, policy="stop", trust=first), runtime_dir)
    await reports.line()
    assert await shim.trust(first + 3600)
    assert await shim.trust(first)
    status = await shim.status()
    assert (status.trust, status.phase) == (first + 3600, "running")
    await shim.kill()
    assert not (await ended(shim)).trust_lost
    await shim.forget()


async def test_s3_a_frozen_agent_loses_its_trainer(job: Job, reports: ReportPipe, runtime_dir: Path) -> None:
    """F3: another process is the agent, and is stopped by SIGSTOP in the middle of its renewals."""
    agent = await agent_process(replace(job, policy="stop"), runtime_dir, trusted=2.0)
    assert agent.stdin is not None
    trainer = await trainer_of(agent)
    agent.stdin.write(b"renew\n")
    assert await line_of(agent) == "True"
    os.kill(agent.pid, signal.SIGSTOP)
    agent.stdin.write(b"renew\n" * 10)
    await dead(trainer)
    (shim,) = await discover(runtime_dir)
    how = await ended(shim)
    assert how.trust_lost and how.kill_began is not None and how.trust is not None
    assert how.trust <= how.kill_began < how.trust + WITHIN
    agent.kill()
    await agent.wait()
    await shim.forget()


# --- agents that die, shims that die ---------------------------------------------------------

AGENT = """
import asyncio, json, sys
from pathlib import Path
from agent.shim.processes import boottime
from agent.shim_client.shims import Job, Shim

async def main():
    told, trusted = json.loads(sys.argv[1]), float(sys.argv[3])
    shown = {**told, "argv": tuple(told["argv"]), "cwd": Path(told["cwd"]), "folder": Path(told["folder"])}
    shim = await Shim.start(Job(**shown | {"trust": boottime() + trusted}), Path(sys.argv[2]))
    print(shim.record.pid, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(await shim.trust(boottime() + trusted), flush=True)

asyncio.run(main())
"""


async def agent_process(job: Job, runtime_dir: Path, *, trusted: float = 0.0) -> asyncio.subprocess.Process:
    """An agent of its own, with one shim. It says who its trainer is, and renews trust at each line it is sent."""
    argv = (sys.executable, "-c", AGENT, json.dumps(job.to_json()), str(runtime_dir), str(trusted))
    environment, pipe = {**os.environ, "PYTHONPATH": ROOT}, asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*argv, env=environment, stdin=pipe, stdout=pipe)


async def line_of(agent: asyncio.subprocess.Process) -> str:
    assert agent.stdout is not None
    async with asyncio.timeout(WITHIN):
        return (await agent.stdout.readline()).decode().strip()


async def trainer_of(agent: asyncio.subprocess.Process) -> int:
    return int(await line_of(agent))


async def test_f2_the_trainer_survives_its_agent_and_is_found_again(
    job: Job, reports: ReportPipe, runtime_dir: Path
) -> None:
    agent = await agent_process(job, runtime_dir)
    trainer = await trainer_of(agent)
    agent.kill()
    await agent.wait()
    (shim,) = await discover(runtime_dir)
    assert (shim.record.lease, shim.record.pid, shim.record.folder) == ("lease-1", trainer, str(job.folder))
    assert (await shim.status()).phase == "running"
    again = await Shim.attach(shim.path)
    assert again.record == shim.record
    await again.stop(60)
    assert (await ended(shim)).signal == signal.SIGTERM
    await shim.forget()
    assert await discover(runtime_dir) == []


async def test_an_exit_waits_for_the_next_agent(job: Job, reports: ReportPipe, runtime_dir: Path) -> None:
    """F2: the trainer ends while no agent is there."""
    script = ("sh", "-c", "echo up $$ > $TOLD; head -c1 $TOLD.go > /dev/null; exit 5")
    os.mkfifo(f"{reports.path}.go")
    agent = await agent_process(replace(job, argv=script), runtime_dir)
    trainer = await trainer_of(agent)
    agent.kill()
    await agent.wait()
    await asyncio.to_thread(Path(f"{reports.path}.go").write_text, "x")
    await dead(trainer)
    (shim,) = await discover(runtime_dir)
    assert (await ended(shim)).code == 5
    await shim.forget()


async def test_an_orphaned_trainer_is_stopped_with_grace_then_killed(
    job: Job, reports: ReportPipe, runtime_dir: Path
) -> None:
    script = 'trap "echo asked > $TOLD" TERM; echo up $$ > $TOLD; while :; do tail -f /dev/null & wait; done'
    orphan = replace(job, argv=("sh", "-c", script), orphan_limit=1.0, grace=0.5)
    agent = await agent_process(orphan, runtime_dir)
    trainer = int((await reports.line()).split()[1])
    await trainer_of(agent)  # by then the shim has written down whom it keeps
    agent.kill()
    await agent.wait()
    assert await reports.line() == "asked"
    await dead(trainer)
    (shim,) = await discover(runtime_dir)
    how = await ended(shim)  # the shim itself may have ended too by now: nobody came
    assert (how.signal, how.stop_reason, how.kill_reason) == (signal.SIGKILL, "no agent", "grace over")
    await shim.forget()
    assert left_in(runtime_dir) == []


async def test_a_killed_shim_takes_its_whole_tree_with_it(job: Job, reports: ReportPipe, runtime_dir: Path) -> None:
    """The kernel ends the trainer; `wait` hears of it, finds what set itself apart, and ends that too."""
    script = "setsid sh -c 'echo $$ > $TOLD; exec tail -f /dev/null' & wait"
    shim = await Shim.start(replace(job, argv=("sh", "-c", script)), runtime_dir)
    grandchild = int(await reports.line())
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(ended(shim))
        await shim.status()
        os.kill(shim_pid(shim), signal.SIGKILL)
    assert waiting.result().lost and not waiting.result().succeeded
    assert process(grandchild) is None or process(grandchild).dead  # type: ignore[union-attr]
    assert find_orphans(shim.path.stem, shim.record) == []
    with pytest.raises(ShimGone):
        await shim.status()
    await shim.forget()
    assert left_in(runtime_dir) == []


async def test_a_shim_killed_while_no_agent_lived_is_told_from_a_living_one(
    job: Job, reports: ReportPipe, runtime_dir: Path
) -> None:
    script = "setsid tail -f /dev/null & echo up $! > $TOLD; wait"
    agent = await agent_process(replace(job, argv=("sh", "-c", script)), runtime_dir)
    grandchild = int((await reports.line()).split()[1])
    await trainer_of(agent)  # by then the shim has written down whom it keeps
    agent.kill()
    await agent.wait()
    (shim,) = await discover(runtime_dir)
    os.kill(shim_pid(shim), signal.SIGKILL)
    await dead(shim_pid(shim))
    with pytest.raises(ShimGone):
        await Shim.attach(shim.path)
    (shim,) = await discover(runtime_dir)
    assert (await ended(shim)).lost
    await dead(grandchild)
    await shim.forget()


async def test_after_a_reboot_nothing_is_killed_by_an_old_pid(runtime_dir: Path, tmp_path: Path) -> None:
    """The pid and even the start time of an earlier boot belong to somebody else now."""
    me = process(os.getpid())
    assert me is not None
    earlier = Record(
        shim="0123456789ab", lease="lease-0", folder=str(tmp_path), policy="continue", boot_id="another",
        started=0.0, pid=me.pid, start_time=me.start_time,
    )  # fmt: skip
    assert find_orphans(earlier.shim, earlier) == []
    assert [each.pid for each in find_orphans(earlier.shim, replace(earlier, boot_id=boot()))][-1:] == [me.pid]
    (runtime_dir / "0123456789ab.json").write_text(
        json.dumps({name: getattr(earlier, name) for name in Record.__slots__})
    )
    (shim,) = await discover(runtime_dir)
    assert shim.record.rebooted
    assert (await ended(shim)).lost
    await shim.forget()


def boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def test_a_frozen_shim_is_silent_not_dead(
    job: Job, reports: ReportPipe, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = await Shim.start(job, runtime_dir)
    trainer = int((await reports.line()).split()[1])
    os.kill(shim_pid(shim), signal.SIGSTOP)
    monkeypatch.setattr("agent.shim_client.shims.ANSWER", 0.2)
    with pytest.raises(ShimUnresponsive):
        await shim.status()
    assert [each.record for each in await discover(runtime_dir)] == [shim.record]
    assert process(trainer) is not None
    os.kill(shim_pid(shim), signal.SIGCONT)
    monkeypatch.undo()
    await shim.kill()
    assert (await ended(shim)).signal == signal.SIGKILL
    await shim.forget()


async def test_a_stopped_shim_is_told_to_go_on_by_who_waits(
    job: Job, reports: ReportPipe, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.shim_client.shims.CHECK_INTERVAL", 0.05)
    monkeypatch.setattr("agent.shim_client.shims.ANSWER", 0.2)
    shim = await Shim.start(job, runtime_dir)
    trainer = int((await reports.line()).split()[1])
    os.kill(shim_pid(shim), signal.SIGSTOP)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(ended(shim))
        os.kill(trainer, signal.SIGINT)
    how = waiting.result()
    assert (how.signal, how.lost, how.kill_reason) == (signal.SIGINT, False, None)
    await shim.forget()


async def test_s3_a_shim_that_stays_silent_is_killed_with_its_trainer(
    job: Job, reports: ReportPipe, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs where it writes, as on a volume that is away; nobody would keep its deadline."""
    monkeypatch.setattr("agent.shim_client.shims.CHECK_INTERVAL", 0.05)
    monkeypatch.setattr("agent.shim_client.shims.ANSWER", 0.2)
    monkeypatch.setitem(UNRESPONSIVE_LIMIT, "stop", 0.5)
    shim = await Shim.start(replace(job, policy="stop", trust=boottime() + 3600), runtime_dir)
    trainer = int((await reports.line()).split()[1])
    os.mkfifo(job.folder / f"dump.json.tmp-{shim_pid(shim)}")
    with pytest.raises(ShimUnresponsive):
        await shim.dump()
    assert (await ended(shim)).lost
    assert process(trainer) is None or process(trainer).dead  # type: ignore[union-attr]
    await shim.forget()
    assert left_in(runtime_dir) == []


async def test_a_trainer_whose_agent_waits_is_no_orphan(
    job: Job, reports: ReportPipe, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that is away for hours gives the agent nothing to pass on; the shim is not left alone for that."""
    monkeypatch.setattr("agent.shim_client.shims.CHECK_INTERVAL", 0.05)
    script = "signal.signal(signal.SIGALRM, lambda *_: sys.exit(0)); signal.setitimer(signal.ITIMER_REAL, 2)"
    shim = await Shim.start(replace(job, argv=python(f"{script}\nsignal.pause()"), orphan_limit=1.5), runtime_dir)
    how = await ended(shim)
    assert (how.code, how.stop_reason) == (0, None)
    await shim.forget()


async def test_an_agent_that_removes_the_socket_first_leaves_no_complaint(job: Job, runtime_dir: Path) -> None:
    shim = await Shim.start(replace(job, argv=("true",)), runtime_dir)
    await ended(shim)
    reader, writer = await asyncio.open_unix_connection(str(shim.path))
    for path in left_in(runtime_dir):
        path.unlink()
    writer.write(b'{"op": "forget"}\n')
    async with asyncio.timeout(WITHIN):
        assert json.loads(await reader.readline())["ok"]
    writer.close()
    await shim.forget()
    assert (job.folder / "shim.log").read_text() == ""


async def test_stale_sockets_are_removed(runtime_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime_dir / "stale.sock"))
    assert await discover(runtime_dir) == []
    assert left_in(runtime_dir) == []


# --- the spare -------------------------------------------------------------------------------


async def test_a_spare_runs_a_job_and_is_replaced(job: Job, reports: ReportPipe, runtime_dir: Path) -> None:
    async with SpareShim(runtime_dir) as spare:
        (first,) = left_in(runtime_dir)
        shim = await spare.start(job)
        assert shim.path == first
        await reports.line()
        await spare.ready()
        (second,) = (path for path in left_in(runtime_dir) if path.suffix == ".sock" and path != first)
        with pytest.raises(ShimRefused):
            await Shim.attach(second)
    assert (await shim.status()).phase == "running"
    assert left_in(runtime_dir) == [first.with_suffix(".json"), first]
    await shim.kill()
    await ended(shim)
    await shim.forget()


async def test_a_spare_that_was_killed_costs_nothing(job: Job, reports: ReportPipe, runtime_dir: Path) -> None:
    async with SpareShim(runtime_dir) as spare:
        (first,) = left_in(runtime_dir)
        victim = spare._spare
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        await dead(victim.pid)
        shim = await spare.start(job)
        await reports.line()
        assert not first.exists()
        await shim.kill()
        await ended(shim)
        await shim.forget()


async def test_a_spare_ends_with_its_agent(runtime_dir: Path) -> None:
    spare = SpareShim(runtime_dir)
    await spare.__aenter__()
    idle = spare._spare
    assert idle is not None
    idle.lifeline.close()
    async with asyncio.timeout(WITHIN):
        await asyncio.to_thread(os.waitpid, idle.pid, 0)
    assert not idle.path.exists()


# --- the runtime folder ----------------------------------------------------------------------


def test_a_runtime_folder_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bytes too long"):
        prepare_runtime_dir(tmp_path / ("x" * 107))


def test_a_runtime_folder_others_can_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o777)
    with pytest.raises(PermissionError):
        prepare_runtime_dir(path)
