"""Messages of the contract as plain values, and plain values as text for programs.

Unlike protobuf's own JSON: names as in the contract, whole numbers as numbers, enum values in small letters. A field
without presence is always there, so that a script need not ask; one with presence only when it is set.
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


class Output(StrEnum):
    """How a command prints what it found."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    YAML = "yaml"
    NAME = "name"


def plain(message: Message) -> Any:
    """A message as mappings, lists and scalars."""
    match message:
        case timestamp_pb2.Timestamp():
            return message.ToJsonString()
        case duration_pb2.Duration():
            return message.ToTimedelta().total_seconds()
        case struct_pb2.Struct():
            return _whole(json_format.MessageToDict(message))
        case any_pb2.Any():
            return _unpacked(message)
    return {
        field.name: _field(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _field(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        return {str(key): _single(entry, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if isinstance(value, Message):
        return plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name.lower() if known else value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _unpacked(packed: any_pb2.Any) -> dict[str, Any]:
    """`@type` and the fields, as in protobuf's JSON; the bytes of a type that only a newer release knows."""
    try:
        known = descriptor_pool.Default().FindMessageTypeByName(packed.TypeName())
    except KeyError:
        return {"@type": packed.type_url, "value": base64.b64encode(packed.value).decode()}
    return {"@type": packed.type_url, **plain(message_factory.GetMessageClass(known).FromString(packed.value))}


def _whole(value: Any) -> Any:
    """A Struct's doubles as whole numbers where they are; its keys in order, since it has none of its own."""
    match value:
        case Mapping():
            return {key: _whole(value[key]) for key in sorted(value)}
        case list():
            return [_whole(item) for item in value]
        case float() if value.is_integer():
            return int(value)
    return value


def listing(kind: str, items: Sequence[Any], output: Output) -> str:
    """A list for programs: an envelope (`{"runs": []}` also when empty), or one JSON value a line."""
    if output is Output.JSONL:
        return "\n".join(json.dumps(item, ensure_ascii=False) for item in items)
    return single({kind: list(items)}, output)


def single(value: Any, output: Output) -> str:
    """One value for programs."""
    if output is Output.YAML:
        import yaml

        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120).rstrip()
    return json.dumps(value, indent=None if output is Output.JSONL else 2, ensure_ascii=False)
