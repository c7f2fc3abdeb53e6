"""Rewards of one's own: each takes a batch and gives a number for every completion.

A completion is text, or a list of messages where the prompts are; the rows' other columns come by their names.
"""

from typing import Any


def short(completions: list[Any], **_: Any) -> list[float]:
    """1 for saying nothing, 0 for eighty letters and more."""
    return [max(0.0, 1 - len(_said(each)) / 80) for each in completions]


def _said(completion: Any) -> str:
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)
