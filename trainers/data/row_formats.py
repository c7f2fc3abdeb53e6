"""The kinds of rows: recognised by their columns, checked, and converted to what is trained on.

| kind | a row |
| --- | --- |
| `text` | `{"text": …}` |
| `prompt_completion` | `{"prompt": …, "completion": …}` |
| `chat` | `{"messages": [{"role": …, "content": …}, …]}` |
| `preference` | `{"prompt": …, "chosen": …, "rejected": …}`, or without prompt: then both begin with it |
| `unpaired_preference` | `{"prompt": …, "completion": …, "label": true}` |
| `prompt` | `{"prompt": …}`, and the columns that the rewards read, for instance `answer` |
| `alpaca` | `{"instruction": …, "input": …, "output": …}`; becomes `prompt_completion`, as messages |
| `sharegpt` | `{"conversations": [{"from": "human", "value": …}, …]}`; becomes `chat` |

Prompts and their answers are all text or all lists of messages.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainers.errors import ConfigError

Row = dict[str, Any]

#: The columns that identify each kind, in the order in which kinds are tried.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "preference": ("chosen", "rejected"),
    "unpaired_preference": ("prompt", "completion", "label"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "prompt": ("prompt",),
}
#: Arguments that trainers give to reward functions; no column may have such a name.
_RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
#: Columns that rows of a kind may have.
_OPTIONAL: Mapping[str, tuple[str, ...]] = {"preference": ("prompt",), "alpaca": ("input",)}
#: Kinds that are converted, and the kind they become.
_BECOMES: Mapping[str, str] = {"alpaca": "prompt_completion", "sharegpt": "chat"}
_ROLES: Mapping[str, str] = {"human": "user", "gpt": "assistant", "system": "system"} | {
    role: role for role in ("user", "assistant")
}


def readable_kinds(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of rows that a method which learns from `kinds` can be given."""
    return (*kinds, *(kind for kind, other in _BECOMES.items() if other in kinds))


def trained_kind(kind: str) -> str:
    """Return the kind that rows of `kind` have once they are checked."""
    return _BECOMES.get(kind, kind)


def detect_kind(row: Row, kinds: Sequence[str], place: str) -> str:
    """Return the kind of a row, one of `kinds`. Raises ConfigError, which lists the columns of each kind."""
    for kind, columns in COLUMNS.items():
        if kind in kinds and all(column in row for column in columns):
            return kind
    names = ", ".join(map(str, row)) or "none"
    raise ConfigError(
        f"{place}: columns are {names}; they must be {describe_columns(kinds)} "
        "(data.columns renames columns, for instance {body: text})"
    )


def describe_columns(kinds: Sequence[str]) -> str:
    """Return the columns of each kind in words."""
    return " or ".join(
        " and perhaps ".join(("+".join(columns), *_OPTIONAL.get(kind, ())))
        for kind, columns in COLUMNS.items()
        if kind in kinds
    )


def check_row(row: Row, kind: str, place: str) -> Row:
    """Return the row with its kind's columns only, as it is trained on. Raises ConfigError for a row that is wrong."""
    for column in COLUMNS[kind]:
        if column not in row:
            raise ConfigError(f"{place}: no column {column}, which every row of format {kind} must have")
    if row.get("tools"):
        raise ConfigError(f"{place}: rows with tools are not supported yet")
    columns = tuple(row) if kind == "prompt" else (*_OPTIONAL.get(kind, ()), *COLUMNS[kind])
    return _CHECKS[kind]({column: row[column] for column in columns if column in row}, place)


def format_value(value: Any, limit: int = 60) -> str:
    """Return a value for a message, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _check_texts(row: Row, place: str) -> Row:
    for column, value in row.items():
        if not isinstance(value, str):
            raise ConfigError(f"{place}: {column} must be text, found {format_value(value)}")
    return row


def _check_turns(row: Row, place: str) -> Row:
    """Require that every column is text, or that every column is messages."""
    if not any(isinstance(value, list) for value in row.values()):
        return _check_texts(row, place)
    return {column: _check_messages(value, f"{place}: {column}") for column, value in row.items()}


def _check_chat(row: Row, place: str) -> Row:
    return {"messages": _check_messages(row["messages"], f"{place}: messages")}


def _check_preference(row: Row, place: str) -> Row:
    turns = _check_turns(row, place)
    chosen, rejected = turns["chosen"], turns["rejected"]
    if "prompt" in turns:
        return turns
    if chosen == rejected:
        raise ConfigError(
            f"{place}: chosen and rejected are equal, so no prompt can be separated from them; give it as prompt"
        )
    if isinstance(chosen, list) and chosen[0] != rejected[0]:
        raise ConfigError(
            f"{place}: chosen and rejected begin with different messages; give the messages before them as prompt"
        )
    return turns


def _check_prompt(row: Row, place: str) -> Row:
    """Keep the row's other columns, which rewards read."""
    if taken := [name for name in _RESERVED if name in row]:
        raise ConfigError(f"{place}: reward functions are given {taken[0]} by the trainer; rename the column")
    rest = {name: value for name, value in row.items() if name not in ("prompt", "completion")}
    return {**_check_turns({"prompt": row["prompt"]}, place), **rest}


def _check_unpaired_preference(row: Row, place: str) -> Row:
    if not isinstance(row["label"], bool):
        raise ConfigError(
            f"{place}: label must be true (a good completion) or false, found {format_value(row['label'])}"
        )
    return {**_check_turns({name: row[name] for name in ("prompt", "completion")}, place), "label": row["label"]}


def _convert_alpaca(row: Row, place: str) -> Row:
    given = _check_texts({column: value for column, value in row.items() if value is not None}, place)
    question = "\n\n".join(filter(None, (given["instruction"], given.get("input"))))
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": given["output"]}],
    }


def _convert_sharegpt(row: Row, place: str) -> Row:
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        raise ConfigError(f"{place}: conversations: must be a list of turns, found {format_value(turns)}")
    messages = []
    for number, turn in enumerate(turns, 1):
        role = _ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise ConfigError(
                f'{place}: conversations: turn {number} must be {{"from": "human", "value": "…"}} (or gpt, or system), '
                f"found {format_value(turn)}"
            )
        messages.append({"role": role, "content": turn["value"]})
    return {"messages": messages}


def _check_messages(value: Any, place: str) -> list[Row]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{place}: must be a list of messages, found {format_value(value)}")
    for number, message in enumerate(value, 1):
        texts = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ConfigError(
                f'{place}: message {number} must be {{"role": "…", "content": "…"}}, found {format_value(message)}'
            )
        if message.get("tool_calls"):
            raise ConfigError(f"{place}: message {number} has tool_calls, which are not supported yet")
    return [{"role": message["role"], "content": message["content"]} for message in value]


_CHECKS: Mapping[str, Callable[[Row, str], Row]] = {
    "chat": _check_chat,
    "preference": _check_preference,
    "unpaired_preference": _check_unpaired_preference,
    "prompt_completion": _check_turns,
    "text": _check_texts,
    "alpaca": _convert_alpaca,
    "sharegpt": _convert_sharegpt,
    "prompt": _check_prompt,
}
