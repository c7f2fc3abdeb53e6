"""What goes wrong at a Hub, when a test says so."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

#: refuse: answer with a status, nothing is done; lose: it is done, and no answer comes; drop: the line breaks, nothing
#: is done; half: the line breaks in the middle of the request's body; stall: nothing is done and nothing is said;
#: hang: it is done and nothing is said.
Action = Literal["refuse", "lose", "drop", "half", "stall", "hang"]


@dataclass
class Fault:
    """What happens to requests that match `request` (`METHOD /path`), `times` times, after `after` of them."""

    request: str
    action: Action
    times: int = 1
    after: int = 0
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    hit: int = 0  #: how often it has happened


@dataclass
class Faults:
    """Those that are to come, and whoever waits for the end of a stall."""

    planned: list[Fault] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)  #: a request stalls
    released: threading.Event = field(default_factory=threading.Event)  #: stalls are over
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, request: str, action: Action, **more: int | Mapping[str, str]) -> Fault:
        """One more."""
        fault = Fault(request, action, **more)  # type: ignore[arg-type]
        self.planned.append(fault)
        return fault

    def next(self, request: str) -> Fault | None:
        """What is to happen to this request."""
        with self._lock:
            for fault in self.planned:
                if re.search(fault.request, request) and fault.hit < fault.times:
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.hit += 1
                    return fault
        return None

    def stall(self) -> None:
        """Until the test, or its end, says so."""
        self.stalled.set()
        self.released.wait()

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        self.planned.clear()
        self.released.set()
        self.released = threading.Event()
        self.stalled.clear()
