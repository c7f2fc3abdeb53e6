"""Which folder of a store belongs to whom. Pure.

The lease's own id is in every path, so no two attempts ever write to the same place (S4). Two layouts, chosen in the
run file by `checkpoint.layout`:

    relay      <run>/checkpoints/<attempt>-<lease>/step_00000100
    framework  <run>/framework=<framework>/checkpoints/<attempt>-<lease>/step_00000100

and `output`, `logs` and `config` in the place of `checkpoints`. Of an attempt on several nodes each has a folder below.
"""

from __future__ import annotations

from enum import StrEnum

from storage.base import Place


class Layout(StrEnum):
    """How paths are made."""

    RELAY = "relay"
    FRAMEWORK = "framework"


def path_of(place: Place, layout: Layout) -> str:
    """Where a folder lies, relative to the store's base."""
    parts = [room_of(place, layout), f"{place.attempt:04d}-{place.lease}"]
    if place.step is not None:
        parts.append(f"step_{place.step:08d}")
    if place.nodes > 1:
        parts.append(f"node_{place.node:04d}-of-{place.nodes:04d}")
    return "/".join(parts)


def room_of(place: Place, layout: Layout) -> str:
    """Where all folders of the run that are of this kind lie."""
    framework = [f"framework={place.framework}"] if layout is Layout.FRAMEWORK else []
    return "/".join([place.run, *framework, place.kind])
