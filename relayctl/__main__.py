"""`relayctl`: thin commands; what they do is in `looking`, `acting`, `watching` and `up`, imported when needed."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relayctl.command_group import Verbs
from relayctl.commands import data_check
from relayctl.commands.exits import ExitCode
from storage.exit import end_process

if TYPE_CHECKING:
    from relayctl.client.client import RelayClient
    from relayctl.output.serialize import Output
    from relayctl.output.terminal import Terminal


class Format(StrEnum):
    """How to print."""

    table = "table"
    wide = "wide"
    json = "json"
    jsonl = "jsonl"
    yaml = "yaml"
    name = "name"


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(data_check.app, name="data")

Run = Annotated[str, typer.Argument(help="Name of the run.", show_default=False)]
Formatted = Annotated[Format, typer.Option("-o", "--output", help="How to print.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Names only.")]
Labels = Annotated[list[str] | None, typer.Option("-l", "--label", help="Only with this label, key=value.")]


def _show_version(asked: bool) -> None:
    if asked:
        from relay.settings import version

        typer.echo(f"relayctl {version()}".rstrip())
        raise typer.Exit


@app.callback()
def relayctl(
    context: typer.Context,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT; else RELAY_COORDINATOR, else what `up` wrote.", show_default=False)
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Training runs that survive their hosts: submit them, watch them, fetch what they made."""
    context.obj = coordinator


def _run(
    context: typer.Context, work: Callable[[RelayClient, Terminal], Awaitable[ExitCode]], leaving: str = ""
) -> None:
    """Connects, carries the command out, and ends the process with its exit code."""
    from relayctl.commands.runner import carry_out

    raise typer.Exit(carry_out(context.obj, work, leaving))


def _output(format: Format, quiet: bool = False) -> Output:
    from relayctl.output.serialize import Output

    return Output.NAME if quiet else Output(format.value)


@app.command()
def submit(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The run file (YAML, JSON or TOML).", show_default=False)],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Over the file, e.g. options.max_steps=5"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Watch the run until it ends.")] = False,
    output: Formatted = Format.table,
    quiet: Quiet = False,
) -> None:
    """Submit a run: checks the file, shows the plan, sends what must travel."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import acting

        form = _output(output, quiet)
        return await acting.submit(
            client, file, terminal, form, sets=sets or [], name=name, dry_run=dry_run, watch=watch
        )

    _run(context, work, "what was submitted goes on; see: relayctl runs")


@app.command("import")
def bring(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The run file that goes on with it.", show_default=False)],
    folder: Annotated[
        Path, typer.Argument(help="Where its checkpoints are: step_* or checkpoint-* folders.", show_default=False)
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Over the file, e.g. options.max_steps=5"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The run's name; else the file's, else the folder's.", show_default=False)
    ] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Only the newest N.", metavar="N", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    output: Formatted = Format.table,
    quiet: Quiet = False,
) -> None:
    """Make a training that ran elsewhere a run, which rests until it is resumed: its checkpoints and its curve."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import import_run

        form = _output(output, quiet)
        asked = import_run.Asked(file, folder, tuple(sets or ()), name, last, dry_run)
        return await import_run.bring(client, asked, terminal, form)

    _run(context, work, "nothing was imported yet; the same command sends the rest")


@app.command()
def runs(
    context: typer.Context,
    every: Annotated[bool, typer.Option("-a", "--all", help="Also all that finished long ago.")] = False,
    limit: Annotated[int | None, typer.Option("-n", min=1, help="At most this many.", show_default=False)] = None,
    states: Annotated[list[str] | None, typer.Option("--state", help="Only in this state.")] = None,
    labels: Labels = None,
    since: Annotated[str | None, typer.Option(help="Submitted in the last, e.g. 2h.", show_default=False)] = None,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Go on showing.")] = False,
    output: Formatted = Format.table,
    quiet: Quiet = False,
) -> None:
    """List runs: the unfinished ones and the last finished."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import looking

        return await looking.runs(
            client,
            terminal,
            _output(output, quiet),
            every=every,
            limit=limit,
            states=states or [],
            labels=labels or [],
            since=since,
            watch=watch,
        )

    _run(context, work)


@app.command()
def show(
    context: typer.Context,
    run: Run,
    spec: Annotated[bool, typer.Option("--spec", help="The resolved run file, as YAML.")] = False,
    output: Formatted = Format.table,
) -> None:
    """Show one run: state, progress, attempts, newest checkpoint."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import looking

        return await looking.show(client, run, _output(output), spec=spec)

    _run(context, work)


@app.command()
def why(context: typer.Context, run: Run, output: Formatted = Format.table) -> None:
    """Say why a run is where it is, at length."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import looking

        return await looking.why(client, run, _output(output))

    _run(context, work)


@app.command()
def watch(context: typer.Context, run: Run) -> None:
    """Watch a run until it ends; the exit code says how."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import watch

        return await watch.watch(client, run, terminal)

    _run(context, work, f"the run continues; watch it again with: relayctl watch {run}")


@app.command()
def wait(
    context: typer.Context,
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", show_default=False)],
    timeout: Annotated[str | None, typer.Option(help="Give up after, e.g. 30m.", show_default=False)] = None,
) -> None:
    """Wait until runs have ended; the exit code is 10 if one failed, 11 if one was cancelled, 12 if time ran out."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import watch
        from runfile import parse_duration

        return await watch.wait(client, runs, parse_duration(timeout) if timeout else None)

    _run(context, work, "the runs continue without you")


@app.command()
def logs(
    context: typer.Context,
    run: Run,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    lines: Annotated[int, typer.Option("-n", min=0, help="Only the last lines; 0 is all.")] = 0,
    since: Annotated[str | None, typer.Option(help="Only the last, e.g. 10m.", show_default=False)] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="With the time each line arrived.")] = False,
    attempt: Annotated[int, typer.Option(min=0, help="Only this attempt; 0 is all.")] = 0,
    node: Annotated[int | None, typer.Option(min=0, help="Only this node.", show_default=False)] = None,
    output: Formatted = Format.table,
) -> None:
    """Print what the trainer printed."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import looking

        return await looking.logs(
            client,
            run,
            _output(output),
            follow=follow,
            lines=lines,
            since=since,
            timestamps=timestamps,
            attempt=attempt,
            node=node,
        )

    _run(context, work, f"the run continues; follow it again with: relayctl logs -f {run}" if follow else "")


@app.command()
def metrics(
    context: typer.Context,
    run: Run,
    names: Annotated[list[str] | None, typer.Argument(metavar="[METRIC…]", show_default=False)] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the curves here.")] = False,
    png: Annotated[Path | None, typer.Option(help="Draw them into a file.", show_default=False)] = None,
    output: Formatted = Format.table,
) -> None:
    """Show a run's metrics: one curve each, however many attempts made it."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import looking

        return await looking.metrics(client, run, names or [], terminal, _output(output), plot=plot, png=png)

    _run(context, work)


@app.command()
def samples(
    context: typer.Context,
    run: Run,
    step: Annotated[int | None, typer.Option(min=0, help="Those made at this step.", show_default=False)] = None,
    steps: Annotated[int, typer.Option("-n", "--steps", min=1, help="Of the newest so many steps.")] = 1,
    every: Annotated[bool, typer.Option("-a", "--all", help="Of all steps.")] = False,
    kind: Annotated[str | None, typer.Option(help="Only these: prompt or rollout.", show_default=False)] = None,
    output: Formatted = Format.table,
) -> None:
    """Show what the model says: completions of the same prompts over time, rollouts with their rewards."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import looking

        return await looking.samples(client, run, _output(output), step, 0 if every else steps, kind or "")

    _run(context, work)


Reason = Annotated[str, typer.Option(help="Kept in the run's history.")]


@app.command()
def checkpoints(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="RUN | pin RUN@STEP | unpin RUN@STEP", show_default=False)],
    every: Annotated[bool, typer.Option("-a", "--all", help="Also those off the curve or let go.")] = False,
    reason: Reason = "",
    output: Formatted = Format.table,
    quiet: Quiet = False,
) -> None:
    """List a run's checkpoints, and why each stays; or pin one (RUN@STEP, RUN@latest), so that it stays."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import checkpoints as commands

        form = _output(output, quiet)
        match words:
            case [run]:
                return await commands.listed(client, run, terminal, form, every=every)
            case ["pin" | "unpin" as verb, point]:
                return await commands.pin(client, point, form, pinned=verb == "pin", reason=reason)
        raise commands.mistaken(words)

    _run(context, work)


def _verb(context: typer.Context, act: Callable[[RelayClient], Awaitable[Any]], output: Format) -> None:
    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import acting

        return await acting.told(act(client), _output(output))

    _run(context, work)


@app.command()
def cancel(context: typer.Context, run: Run, reason: Reason = "", output: Formatted = Format.table) -> None:
    """End a run; its trainer saves first."""
    _verb(context, lambda client: client.cancel(run, reason), output)


@app.command()
def pause(context: typer.Context, run: Run, reason: Reason = "", output: Formatted = Format.table) -> None:
    """Let a run rest with its newest checkpoint."""
    _verb(context, lambda client: client.pause(run, reason), output)


@app.command()
def resume(context: typer.Context, run: Run, output: Formatted = Format.table) -> None:
    """Let a paused run go on."""
    _verb(context, lambda client: client.resume(run), output)


@app.command()
def pull(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(help="A run, or RUN@STEP, RUN@latest, RUN@best.", metavar="RUN[@STEP]", show_default=False)
    ],
    folder: Annotated[
        Path, typer.Argument(help="Where to put it.", metavar="DIR", file_okay=False, show_default=False)
    ],
) -> None:
    """Fetch a run's result, or one of its checkpoints, every file verified."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.client import copies
        from relayctl.commands import acting

        if "@" in what:
            return await copies.pull(client, what, folder, terminal)
        return await acting.pull(client, what, folder, terminal)

    _run(context, work, "fetch the rest with the same command")


@app.command()
def push(
    context: typer.Context,
    point: Annotated[
        str, typer.Argument(help="RUN@STEP, RUN@latest or RUN@best.", metavar="RUN@STEP", show_default=False)
    ],
    to: Annotated[
        str, typer.Option(help="relay://, file:///…, s3://…, gs://… or az://…", metavar="URI", show_default=False)
    ],
    pin: Annotated[bool, typer.Option("--pin/--no-pin", help="Whether it is to stay from now on.")] = True,
) -> None:
    """Put a checkpoint into another store too, for hosts to resume from; it is pinned, so that it stays."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import push

        return await push.push(client, point, to, terminal, pin=pin)

    _run(context, work, "nothing was told to the coordinator of what had not arrived; push it again")


@app.command()
def export(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(help="A run, or RUN@STEP, RUN@latest, RUN@best.", metavar="RUN[@STEP]", show_default=False)
    ],
    to: Annotated[
        str,
        typer.Option(help="A folder, s3://…, gs://…, az://… or hf://owner/name.", metavar="DEST", show_default=False),
    ],
    private: Annotated[
        bool, typer.Option("--private/--public", help="Of a Hub repository that has to be made.")
    ] = True,
) -> None:
    """Write what can be loaded of a run's result or checkpoint, with a card; no trainer's state."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import export

        return await export.export(client, what, to, terminal, private=private)

    _run(context, work, "export it again with the same command")


@app.command()
def verify(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(help="A run, or RUN@STEP, RUN@latest, RUN@best.", metavar="RUN[@STEP]", show_default=False)
    ],
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte of every copy.")] = False,
    output: Formatted = Format.table,
) -> None:
    """Look at the copies of a run's checkpoints; the exit code is 1 when one is damaged or out of reach."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.client import copies

        return await copies.verify(client, what, terminal, _output(output), deep=deep)

    _run(context, work)


@app.command()
def promote(
    context: typer.Context,
    run: Run,
    repo: Annotated[
        str | None, typer.Option(help="owner/name, where the run file does not say it.", show_default=False)
    ] = None,
) -> None:
    """Make a run's model what `main` of its Hub repository holds; HF_TOKEN must be one that may write there."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import promote

        return await promote.promote(client, run, repo)

    _run(context, work)


@app.command()
def agents(
    context: typer.Context, labels: Labels = None, output: Formatted = Format.table, quiet: Quiet = False
) -> None:
    """List the hosts."""

    async def work(client: RelayClient, terminal: Terminal) -> ExitCode:
        from relayctl.commands import looking

        return await looking.agents(client, terminal, _output(output, quiet), labels=labels or [])

    _run(context, work)


@app.command()
def config(
    context: typer.Context,
    use: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Make this the default.", show_default=False)
    ] = None,
    output: Formatted = Format.table,
) -> None:
    """Show which coordinator is used and why, or set the default."""
    from relayctl.commands.runner import configure

    raise typer.Exit(configure(context.obj, use, _output(output)))


@app.command()
def up(
    data_dir: Annotated[
        Path | None, typer.Option(help="Where everything is kept [~/.local/share/relay/up].", show_default=False)
    ] = None,
    listen: Annotated[str, typer.Option(help="Where the coordinator listens.")] = "127.0.0.1:7070",
    hosts: Annotated[int, typer.Option("--agents", min=0, max=16, help="How many agents.")] = 1,
    timing: Annotated[str, typer.Option(help="Lease timing: default, wan or test.")] = "default",
) -> None:
    """Run everything on this machine until Ctrl-C: database, coordinator, agents."""
    from relayctl.commands.up import up as bring_up

    raise typer.Exit(bring_up(data_dir, listen, hosts, timing))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where its things are kept.")] = Path(".demo"),
) -> None:
    """Train a small model on two hosts, kill one in the middle, see the other finish."""
    from relayctl.commands.demo import demo as show

    raise typer.Exit(show(folder))


def main() -> None:
    """The entry point."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its notes on forks and proxies are not for users
    try:
        app(prog_name="relayctl")
    except SystemExit as ended:
        if isinstance(ended.code, int):
            end_process(ended.code)
        raise


if __name__ == "__main__":
    main()
