"""Make `examples/data/sums.*.jsonl` again, byte for byte: sums from reasoning-gym's `chain_sum`, held-out ones
disjoint.

    python examples/make_sums.py            writes the files
    python examples/make_sums.py --check    says whether they are what this script makes

The questions are asked as the chat model expects them, and the answer is the bare number: the format that an instruct
model, which likes whole sentences, has to learn.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from reasoning_gym import create_dataset

FOLDER = Path(__file__).parent / "data"
SEED = 11
SIZES = {"train": 1200, "heldout": 64}


def sums() -> Iterator[tuple[str, str]]:
    """Distinct expressions and their values, e.g. ("4 + 17 - 3", "18"), without end."""
    seen: set[str] = set()
    seed = SEED
    while True:
        for task in create_dataset(
            "chain_sum", size=500, seed=seed, min_terms=2, max_terms=3, min_digits=1, max_digits=2
        ):
            expression = task["metadata"]["expression"]
            if expression not in seen:
                seen.add(expression)
                yield expression, task["answer"]
        seed += 1


def files() -> dict[str, str]:
    """The text of each file by name."""
    source = sums()
    made = {}
    for part, size in SIZES.items():
        rows = (next(source) for _ in range(size))
        made[f"sums.{part}.jsonl"] = "".join(f"{json.dumps(_row(*row))}\n" for row in rows)
    return made


def _row(expression: str, answer: str) -> dict[str, list[dict[str, str]]]:
    return {
        "prompt": [{"role": "user", "content": f"{expression} ="}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    stale = [
        name for name, text in files().items() if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != text
    ]
    if check:
        print(f"differ: {', '.join(stale)}" if stale else "as made")
        return int(bool(stale))
    for name, text in files().items():
        (FOLDER / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
