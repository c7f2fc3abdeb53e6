"""Where folders lie below a store's base, and the index at the base. Pure.

The lease's own id is in every path, so no two attempts ever write to the same path (S4). There are two layouts, chosen
in the run file by `checkpoint.layout`:

    relay      <run>/checkpoints/<attempt>-<lease>/step_00000100
    framework  <run>/framework=<framework>/checkpoints/<attempt>-<lease>/step_00000100

with `output`, `logs` or `config` instead of `checkpoints` for the other kinds. Of an attempt on several nodes each node
has a folder below that.

The index, `index.jsonl`, has a line for each folder published below the base, for users and scripts (row C5).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum

from storage.base import FolderKey
from storage.manifest import Manifest

INDEX_FILE = "index.jsonl"


class Layout(StrEnum):
    """How paths are made of a folder's key."""

    RELAY = "relay"
    FRAMEWORK = "framework"


def folder_path(key: FolderKey, layout: Layout) -> str:
    """Return a folder's path relative to the store's base."""
    parts = [kind_path(key, layout), f"{key.attempt:04d}-{key.lease}"]
    if key.step is not None:
        parts.append(f"step_{key.step:08d}")
    if key.nodes > 1:
        parts.append(f"node_{key.node:04d}-of-{key.nodes:04d}")
    return "/".join(parts)


def kind_path(key: FolderKey, layout: Layout) -> str:
    """Return the path below which all folders of this run and kind lie."""
    framework = [f"framework={key.framework}"] if layout is Layout.FRAMEWORK else []
    return "/".join([key.run, *framework, key.kind])


def index_line(key: FolderKey, manifest: Manifest, uri: str, time: float) -> bytes:
    """Return the index's line about a folder; `time` is in seconds since the epoch."""
    line = {
        "time": datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds"),
        "run": key.run,
        "kind": key.kind,
        "attempt": key.attempt,
        "lease": key.lease,
        "step": key.step,
        "node": key.node,
        "digest": manifest.digest,
        "size": manifest.size,
        "uri": uri,
    }
    return json.dumps(line).encode() + b"\n"


def is_indexed(index: bytes, uri: str) -> bool:
    """Return whether the index lists this folder; a last line that a dying writer left unended does not count."""
    quoted = json.dumps(uri).encode()
    return any(quoted in line for line in index.split(b"\n")[:-1])


def missing_line_end(index: bytes) -> bytes:
    """Return what must be written before the next line: the end of a line that a dying writer left unended."""
    return b"\n" if index and not index.endswith(b"\n") else b""
