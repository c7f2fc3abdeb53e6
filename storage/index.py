"""`index.jsonl` at a store's base: a line for each folder published there, for people and scripts (row C5). Pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from storage.base import Place
from storage.manifest import Manifest

NAME = "index.jsonl"


def line_of(place: Place, manifest: Manifest, uri: str, time: float) -> bytes:
    """What the index says of a folder; `time` in seconds since the epoch."""
    said = {
        "time": datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds"),
        "run": place.run,
        "kind": place.kind,
        "attempt": place.attempt,
        "lease": place.lease,
        "step": place.step,
        "node": place.node,
        "digest": manifest.digest,
        "size": manifest.size,
        "uri": uri,
    }
    return json.dumps(said).encode() + b"\n"


def names(index: bytes, uri: str) -> bool:
    """Whether it has a line of this folder. Half a line that a writer who died has left says nothing."""
    quoted = json.dumps(uri).encode()
    return any(quoted in line for line in index.split(b"\n")[:-1])


def mended(index: bytes) -> bytes:
    """What to write before the next line: an end for half a line."""
    return b"\n" if index and not index.endswith(b"\n") else b""
