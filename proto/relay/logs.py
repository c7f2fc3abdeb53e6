"""Logging of the daemons: one line a record, with what changes as `key=value` and what is bound on every line.

    2026-12-01T09:30:05.123Z INFO agent.attempt.setup: trainer started pid=4711 run=library lease=0b7c… attempt=2

A message is words that never change; what changes is a field, given as a keyword: `log.info("trainer started", pid=7)`.
What holds for a whole piece of work is bound once, by `with bind(run=…, lease=…):`. Tasks that are created inside and
threads of `asyncio.to_thread` inherit it, and the lines that libraries log there carry it too. Threads of any other
executor inherit nothing: bind there again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

_OF_LOGGING = {"exc_info", "stack_info", "stacklevel"}  #: keywords that are no fields
_KINDS = {"runs": "run", "leases": "lease", "checkpoints": "checkpoint", "agents": "agent"}
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_bound: ContextVar[Mapping[str, object]] = ContextVar("relay_log_fields", default=MappingProxyType({}))


class FieldLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose keyword arguments are the fields of the line; one that is None is left out."""

    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[object, MutableMapping[str, Any]]:
        """Put the fields into the record, for the formatter."""
        fields = {key: kwargs.pop(key) for key in list(kwargs) if key not in _OF_LOGGING}
        return msg, {**kwargs, "extra": {"fields": fields}}


def get_logger(name: str) -> FieldLogger:
    """Return the logger of a module."""
    return FieldLogger(logging.getLogger(name))


@contextlib.contextmanager
def bind(**fields: object) -> Iterator[None]:
    """Add fields to every line that is logged while the block runs, also in the tasks and threads it creates."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # a generator that another task closes: that task has its own fields
            _bound.reset(token)


def name_fields(name: str) -> dict[str, str]:
    """Return the fields that a resource name holds: run and lease of `runs/{run}/leases/{lease}`; {} if it is none."""
    parts = name.split("/")
    kinds, ids = parts[::2], parts[1::2]
    if len(kinds) != len(ids) or not _KINDS.keys() >= set(kinds) or not all(map(_ID.fullmatch, ids)):
        return {}
    return {_KINDS[kind]: each for kind, each in zip(kinds, ids, strict=True)}


class LineFormatter(logging.Formatter):
    """Formats a record as a line: time, level, logger, message, its own fields, bound fields; then a traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time in UTC, to the millisecond, by RFC 3339."""
        return f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03d}Z"

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line itself."""
        if not record.message.isprintable():  # a library's may have several lines
            record.message = "".join(each if each.isprintable() else repr(each)[1:-1] for each in record.message)
        own = getattr(record, "fields", {})
        fields = {**own, **_bound.get(), **own}  # its own come first, and win
        rendered = (f"{key}={_quote(value)}" for key, value in fields.items() if value is not None)
        return " ".join([super().formatMessage(record), *rendered])


def _quote(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    printable = text.isprintable()
    return text if printable and text and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=not printable)


def configure() -> None:
    """Log to standard error from now on, this process's lines and its libraries', from INFO up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
