"""`python -m tests.faults.soak`: breaks deployments of real processes again and again, until a promise is broken.

    python -m tests.faults.soak --minutes 30 --seed 7     all faults, round after round
    python -m tests.faults.soak --kills 100 --runs 20     agents, shims, trainers, replicas and Postgres killed, once

What happens is drawn from the seed, which is printed; the machine's own timing is not. Each round has new hosts and new
runs on two replicas and a Postgres of its own, and ends healed, with every run over and the history checker's word.
When a promise is broken the folder with all logs, disks and the database's rows is kept, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random, SystemRandom

import asyncpg

from tests.end_to_end.fleet import Deployment, deployed, fleet_of
from tests.faults.chaos import carry_out, now, promises_kept, submit, world_of
from tests.faults.database.clusters import Site, site_in
from tests.faults.schedule import FAULTS, KILLS, Plan, plan
from tests.history.record import Recorded, recorded

HOSTS = 4
KINDS, STRIKES = 10, 40  #: of faults in a round


def plans(arguments: argparse.Namespace) -> Iterator[Plan]:
    """Rounds without end; of kills one, and of a seed that names its round that one."""
    seed = str(arguments.seed)
    if arguments.kills:
        yield plan(seed, KILLS, strikes=arguments.kills, runs=arguments.runs, seconds=0.8 * arguments.kills)
    elif "/" in seed:
        yield mixed(seed, arguments.runs)
    else:
        yield from (mixed(f"{seed}/{number}", arguments.runs) for number in itertools.count(1))


def mixed(seed: str, runs: int) -> Plan:
    """A round of some of all faults, often: what one kind would prevent, others bring about in rounds without it."""
    some = Random(seed).sample(FAULTS, KINDS)
    return plan(seed, some, strikes=STRIKES, runs=runs, seconds=40.0)


async def one_round(deployment: Deployment, site: Site, folder: Path, chosen: Plan, hosts: int = HOSTS) -> str:
    """Carries out a plan on new hosts; what was done, in words. AssertionError when a promise was broken."""
    began = now()
    await asyncio.to_thread(folder.mkdir)
    async with fleet_of(deployment, folder) as fleet, world_of(fleet, site, hosts) as world:
        await submit(world, chosen.runs)
        await carry_out(world, chosen)
        mended = now()
        await promises_kept(world)
        over, found = now(), await recorded(deployment.database_url)
    struck = ", ".join(f"{count} {fault}" for fault, count in sorted(world.struck.items()))
    return (
        f"seed {chosen.seed}: sound. {world.struck.total()} faults in {mended - began:.0f} s, all over "
        f"{over - mended:.0f} s later; {len(world.runs)} runs, {in_words(found)}\n    {struck}"
    )


def in_words(found: Recorded) -> str:
    """What became of the leases."""
    outcomes = Counter(lease["outcome"] for lease in found["leases"])
    lapses = sum(event["kind"] == "lapsed" for event in found["run_events"])
    lapses += sum(lease["reason"] == "no heartbeat from its holder" for lease in found["leases"])
    return f"{lapses} lapses, leases " + ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())


async def soak(arguments: argparse.Namespace, folder: Path) -> int:
    """The exit code."""
    async with site_in(folder / "db") as site, deployed(folder / "c", site.url) as deployment:
        end = now() + 60 * arguments.minutes
        for number, chosen in enumerate(plans(arguments), 1):
            try:
                print(await one_round(deployment, site, folder / f"{number}", chosen), flush=True)
            except Exception:
                await keep(folder / f"{number}", chosen, site)
                raise
            shutil.rmtree(folder / f"{number}")
            if now() > end:
                break
    return 0


async def keep(folder: Path, chosen: Plan, site: Site) -> None:
    """What is needed to see what went wrong, beside the logs."""
    print(f"seed {chosen.seed}: BROKEN; its plan, hosts and rows are kept in {folder}", flush=True)
    (folder / "plan.txt").write_text("\n".join(map(str, [chosen.runs, *chosen.strikes])))
    with contextlib.suppress(OSError, asyncpg.PostgresError):  # it may be what is broken just now
        rows = await recorded(site.primary.url())
        (folder / "rows.json").write_text(json.dumps(rows, default=str, indent=1))


def main(words: Sequence[str]) -> int:
    """0 when every round was sound."""
    arguments = _parser().parse_args(words)
    folder = Path(tempfile.mkdtemp(prefix="relay-soak-"))
    logging.basicConfig(filename=folder / "soak.log", level=logging.INFO, format="%(asctime)s %(message)s")
    print(f"seed {arguments.seed}, in {folder}", flush=True)
    try:
        code = asyncio.run(soak(arguments, folder))
    except KeyboardInterrupt:
        code = 130
    except Exception:
        traceback.print_exc()
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.faults.soak", description="Breaks deployments, and judges them.")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin new rounds for this long (one round)")
    parser.add_argument("--seed", default=SystemRandom().randrange(10**9), help="what happens; printed (random)")
    parser.add_argument("--kills", type=int, default=0, help="so many kills in one round, and no other faults")
    parser.add_argument("--runs", type=int, default=24, help="in a round (24)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
