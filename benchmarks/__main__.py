"""`python -m benchmarks [name …]` runs the named benchmarks, or all of them, and prints a table for each.

Each benchmark is a module with `measure(quick) -> Table`. It runs in a process of its own, so that it inherits no
threads, memory or loaded libraries of another. `--quick` takes a handful of samples, to see that a benchmark works; its
figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.report import machine

NAMES = (
    "start",
    "shim",
    "ingest",
    "stores",
    "trainer",
    "overhead",
    "recovery",
    "stop",
    "throughput",
    "learning",
    "large",
)


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all of them could be measured."""
    arguments = _parser().parse_args(argv)
    names: list[str] = arguments.names or list(NAMES)
    if unknown := set(names) - set(NAMES):
        print(f"no benchmark is called {', '.join(sorted(unknown))}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    if len(names) == 1:
        return _measure(names[0], arguments.quick)
    quick = ["--quick"] if arguments.quick else []
    codes = [subprocess.run([sys.executable, "-m", "benchmarks", *quick, name]).returncode for name in names]
    return next((code for code in codes if code), 0)


def _measure(name: str, quick: bool) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    print(f"{name}: {machine()}", file=sys.stderr, flush=True)
    print(importlib.import_module(f"benchmarks.{name}").measure(quick), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Measures what Relay costs.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of: {', '.join(NAMES)} (all of them)")
    parser.add_argument("--quick", action="store_true", help="a handful of samples: does it work?")
    return parser


if __name__ == "__main__":
    sys.exit(main())
