"""Make `examples/data/sums.*.jsonl` again, byte for byte: sums of reasoning-gym's `chain_sum`, with disjoint held-out
ones, and the first of them in the forms that other methods learn from (preferences, labelled answers, dialogues, text).

    python examples/make_sums.py            writes the files
    python examples/make_sums.py --check    says whether the files are what this script makes

It needs the extra `tasks` (`make extras`). Programs that only read the files do not.

The questions are asked as the chat model expects them, and the answer is the bare number: a format that an instruct
model, which prefers whole sentences, has to learn.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reasoning_gym import create_dataset

FOLDER = Path(__file__).parent / "data"
SEED = 11
SIZES = {"train": 1200, "heldout": 64}
FEW = 120  #: rows of the other kinds


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
    parts = {part: [next(source) for _ in range(size)] for part, size in SIZES.items()}
    few = list(enumerate(parts["train"][:FEW]))
    return {
        **{f"sums.{part}.jsonl": _lines(_row(*row) for row in rows) for part, rows in parts.items()},
        "sums.preferences.jsonl": _lines(_preference(*row) for _, row in few),
        "sums.chat.jsonl": _lines(_chat(*row) for _, row in few),
        "sums.judged.jsonl": _lines(_judged(number, *row) for number, row in few),
        "sums.text.jsonl": _lines({"text": f"{expression} = {answer}"} for _, (expression, answer) in few),
    }


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _preference(expression: str, answer: str) -> dict[str, Any]:
    """The bare number is better than a sentence."""
    row = _row(expression, answer)
    return {"prompt": row["prompt"], "chosen": row["completion"], "rejected": _said(f"The answer is {answer}.")}


def _chat(expression: str, answer: str) -> dict[str, Any]:
    """Question and answer as one dialogue."""
    row = _row(expression, answer)
    return {"messages": [*row["prompt"], *row["completion"]]}


def _judged(number: int, expression: str, answer: str) -> dict[str, Any]:
    """Every other answer is the bare number, which is good."""
    good = number % 2 == 0
    row = _row(expression, answer)
    return {**row, "completion": row["completion"] if good else _said(f"The answer is {answer}."), "label": good}


def _said(answer: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer}]


def _row(expression: str, answer: str) -> dict[str, list[dict[str, str]]]:
    return {
        "prompt": [{"role": "user", "content": f"{expression} ="}],
        "completion": _said(answer),
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
