"""Make `examples/data/orders.*.jsonl` again, byte for byte: orders in plain words, and the line that a program wants.

    python examples/make_orders.py            writes the files
    python examples/make_orders.py --check    says whether the files are what this script makes

It needs the standard library only. No customer of a held-out order appears in the rows that are trained on.

An instruct model that has not seen the format answers such a sentence with a sentence of its own.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

FOLDER = Path(__file__).parent / "data"
SEED = 7
SIZES = {"train": 800, "heldout": 64}

FIRST = "Anna Ben Clara David Elena Felix Grace Henry Iris Jonas Karen Leo Maria Noah Olivia Paul Rosa Simon Tara"
LAST = "Adams Baker Clark Davis Evans Fisher Green Harris Jones King Lewis Miller Nelson Parker Reed Scott Turner Ward"
COLOURS = "red blue green white black yellow brown grey"
ITEMS = "lamp chair table mug plate bottle basket blanket pillow mirror clock kettle spoon towel candle vase"
COUNTS = "one two three four five six seven eight nine ten eleven twelve"
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday"
SENTENCES = (
    "{customer} would like {count} {goods} on {day}.",
    "Please send {count} {goods} to {customer}, {day} at the latest.",
    "On {day}, {customer} needs {count} {goods}.",
    "{customer} called: {count} {goods}, please, by {day}.",
    "Can we deliver {count} {goods} on {day}? The customer is {customer}.",
    "{day}: {count} {goods} for {customer}.",
)


def make_files() -> dict[str, str]:
    """Return the text of each file by name."""
    draw = Random(SEED)
    customers = [f"{first} {last}" for first in FIRST.split() for last in LAST.split()]
    draw.shuffle(customers)
    held_out = len(customers) // 5
    parts = {"heldout": customers[:held_out], "train": customers[held_out:]}
    return {f"orders.{part}.jsonl": "".join(make_rows(draw, SIZES[part], among)) for part, among in parts.items()}


def make_rows(draw: Random, count: int, customers: list[str]) -> Iterator[str]:
    """Yield distinct rows, each a line of a prompt/completion file."""
    seen: set[str] = set()
    while len(seen) < count:
        row = _make_row(draw, draw.choice(customers))
        if row not in seen:
            seen.add(row)
            yield row


def _make_row(draw: Random, customer: str) -> str:
    number, count = draw.choice(list(enumerate(COUNTS.split(), 1)))
    item = f"{draw.choice(COLOURS.split())} {draw.choice(ITEMS.split())}"
    goods, day = item if number == 1 else f"{item}s", draw.choice(DAYS.split())
    sentence = draw.choice(SENTENCES).format(customer=customer, count=count, goods=goods, day=day)
    order = f"{customer} | {number} | {item} | {day}"
    prompt, completion = {"role": "user", "content": sentence}, {"role": "assistant", "content": order}
    return json.dumps({"prompt": [prompt], "completion": [completion]}) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file differs")
    check = parser.parse_args().check
    made = make_files()
    stale = [
        name for name, text in made.items() if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != text
    ]
    if check:
        print(f"differ: {', '.join(stale)}" if stale else "as made")
        return int(bool(stale))
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(made[name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
