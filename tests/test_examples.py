"""The example that `make demo` runs: its rows are what the script makes, and no held-out answer is trained on."""

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def customers(part: str) -> set[str]:
    rows = (json.loads(line) for line in (EXAMPLES / "data" / f"orders.{part}.jsonl").read_text().splitlines())
    return {row["completion"][0]["content"].partition(" | ")[0] for row in rows}


def test_orders_are_as_made() -> None:
    made = subprocess.run(
        [sys.executable, "-S", EXAMPLES / "make_orders.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stdout) == (0, "as made\n")


def test_no_customer_of_a_held_out_order_is_trained_on() -> None:
    assert len(customers("heldout")) > 30 and not customers("heldout") & customers("train")
