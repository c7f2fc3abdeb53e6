"""Output for programs: messages of the contract as plain values, and plain values as JSON, JSON lines or YAML.

Unlike in protobuf's own JSON, fields have the contract's names, whole numbers are numbers and enum values are in lower
case. A field without presence is always in the output; a field with presence is in it when it is set.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from google.protobuf import (
    any_pb2,
    descriptor_pool,
    duration_pb2,
    json_format,
    message_factory,
    struct_pb2,
    timestamp_pb2,
)
from google.protobuf.message import Message

from relayctl.client.client import shorten_name


class Output(StrEnum):
    """The formats of `-o`."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"
    NAME = "name"

    @property
    def for_programs(self) -> bool:
        """Whether the format serializes values, rather than tables or names."""
        return self in (Output.JSON, Output.JSONL, Output.YAML)


def to_plain(message: Message) -> Any:
    """Convert a message to dictionaries, lists and scalars."""
    match message:
        case timestamp_pb2.Timestamp():
            return message.ToJsonString()
        case duration_pb2.Duration():
            return message.ToTimedelta().total_seconds()
        case struct_pb2.Struct():
            return _restore_integers(json_format.MessageToDict(message))
        case any_pb2.Any():
            return _unpack(message)
    return {
        field.name: _field_to_plain(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _field_to_plain(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        return {str(key): _value_to_plain(entry, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_value_to_plain(field, item) for item in value]
    return _value_to_plain(field, value)


def _value_to_plain(field: Any, value: Any) -> Any:
    if isinstance(value, Message):
        return to_plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name.lower() if known else value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _unpack(packed: any_pb2.Any) -> dict[str, Any]:
    """Return `@type` and the fields, as protobuf's JSON has them, or the bytes of a type that is not known here."""
    try:
        known = descriptor_pool.Default().FindMessageTypeByName(packed.TypeName())
    except KeyError:
        return {"@type": packed.type_url, "value": base64.b64encode(packed.value).decode()}
    return {"@type": packed.type_url, **to_plain(message_factory.GetMessageClass(known).FromString(packed.value))}


def _restore_integers(value: Any) -> Any:
    """Make integers of a Struct's whole doubles, and sort its keys, for a Struct keeps no order."""
    match value:
        case Mapping():
            return {key: _restore_integers(value[key]) for key in sorted(value)}
        case list():
            return [_restore_integers(item) for item in value]
        case float() if value.is_integer():
            return int(value)
    return value


def format_list(kind: str, messages: Sequence[Message], output: Output, table: str) -> str:
    """Format a list of messages: as the given table, as their short names, or for programs."""
    if output.for_programs:
        return format_values(kind, [to_plain(message) for message in messages], output)
    if output is Output.NAME:
        return "\n".join(shorten_name(message.name) for message in messages)  # type: ignore[attr-defined]
    return table


def format_values(kind: str, values: Sequence[Any], output: Output) -> str:
    """Format a list for programs: as an envelope (`{"runs": []}` when empty), or as one JSON value a line."""
    if output is Output.JSONL:
        return "\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    return format_value({kind: list(values)}, output)


def format_value(value: Any, output: Output) -> str:
    """Format one value for programs."""
    if output is Output.YAML:
        import yaml

        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120).rstrip()
    return json.dumps(value, indent=None if output is Output.JSONL else 2, ensure_ascii=False)
