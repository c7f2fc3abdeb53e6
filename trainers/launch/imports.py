"""Importing the training libraries faster. Standard library only."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection, for imports: they make millions of objects, all of which stay.

    Searching those again and again for garbage was a third of a start's CPU time (6 instead of 9 seconds from the
    command to the end of a tiny run). Frozen, they are never looked at again, so full collections between steps are
    short too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
