"""Rewards of the user's own: each takes a batch and gives a number for every completion.

A completion is text, or a list of messages where the prompts are messages; the rows' other columns come by name.
"""

from typing import Any


def short(completions: list[Any], **_: Any) -> list[float]:
    """Return 1 for an empty completion, and 0 for eighty letters or more."""
    return [max(0.0, 1 - len(_said(each)) / 80) for each in completions]


def _said(completion: Any) -> str:
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)
