"""`python -m tests.simulation seeds FIRST LAST`, `… one SEED`, `… mutants [NAME …]` or `… diagrams`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.diagrams import PAGE, page
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.simulate import PATIENCE, Verdict, simulate

CHUNK = 50


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 when every seed holds and every mutant is caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    seeds = commands.add_parser("seeds", help="run seeds FIRST to LAST")
    seeds.add_argument("first", type=int)
    seeds.add_argument("last", type=int)
    one = commands.add_parser("one", help="run one seed and tell all of it")
    one.add_argument("seed", type=int)
    one.add_argument("--mutant", default="")
    hunted = commands.add_parser("mutants", help="hunt mutants")
    hunted.add_argument("names", nargs="*")
    hunted.add_argument("--seeds", type=int, default=400, help="the most seeds that each is hunted with")
    commands.add_parser("diagrams", help=f"draw the diagrams of docs/{PAGE.name}")
    chosen = parser.parse_args(arguments)
    if chosen.command == "one":
        return tell(chosen.seed, chosen.mutant)
    logging.disable(logging.CRITICAL)
    if chosen.command == "diagrams":
        PAGE.write_text(page())
        return 0
    if chosen.command == "seeds":
        return run_seeds(chosen.first, chosen.last)
    return hunt([each for each in MUTANTS if not chosen.names or each.name in chosen.names], chosen.seeds)


def tell(seed: int, name: str) -> int:
    """Everything that happens in one seed."""
    logging.basicConfig(level=logging.DEBUG, format="%(name)s %(message)s", stream=sys.stdout)
    verdict = mutated(name, seed) if name else simulate(seed)
    print("\n".join([*map(str, verdict.faults), f"trace {verdict.trace}", *verdict.violations]))
    return bool(verdict.violations)


def run_seeds(first: int, last: int) -> int:
    """Print every violation, and a summary at the end."""
    began, broken, commits, virtual = time.monotonic(), 0, 0, 0.0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for verdict in pool.map(simulate, range(first, last + 1), chunksize=CHUNK):
            commits, virtual = commits + verdict.commits, virtual + verdict.seconds
            if verdict.violations:
                broken += 1
                print(f"seed {verdict.seed}: {'; '.join(verdict.violations[:3])}", flush=True)
    took, count = time.monotonic() - began, last - first + 1
    print(
        f"{count} seeds in {took:.0f} s ({took / count * 1000:.0f} ms each): {virtual / 3600:.0f} virtual hours, "
        f"{commits} commits; {broken} seeds with a violation"
    )
    return broken > 0


def mutated(name: str, seed: int, patience: float = PATIENCE) -> Verdict:
    """One seed with a rule removed."""
    found = next(each for each in MUTANTS if each.name == name)
    with found.alive():
        return simulate(seed, found.kinds, patience)


def hunt(mutants: Sequence[Mutant], seeds: int) -> int:
    """A line for each: the first seed that shows it, and the properties that break."""
    survivors = 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        caught = pool.map(partial(first_caught, seeds=seeds), [each.name for each in mutants])
        for each, verdict in zip(mutants, caught, strict=True):
            survivors += verdict is None and not each.spare
            found = f"seed {verdict.seed:<4} {', '.join(verdict.properties)}" if verdict else "survives"
            why = f" ({each.spare})" if verdict is None and each.spare else ""
            once = " [a fault that Relay had]" if each.ours else ""
            print(f"{each.name:<28} {found:<26} {each.rule}{why}{once}", flush=True)
    print(f"{survivors} of {len(mutants)} survive without a reason")
    return survivors > 0


def first_caught(name: str, seeds: int) -> Verdict | None:
    """The first seed in which something is wrong without the rule, and nothing is with it."""
    mutant = next(each for each in MUTANTS if each.name == name)
    verdicts = (mutated(name, seed) for seed in range(mutant.first, mutant.first + seeds))
    wrong = (verdict for verdict in verdicts if verdict.violations)
    return next((verdict for verdict in wrong if not simulate(verdict.seed, mutant.kinds).violations), None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
