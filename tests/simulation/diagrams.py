"""Sequence diagrams of the protocol, drawn from simulated runs: the messages that the real code exchanged.

`python -m tests.simulation diagrams` writes them into `docs/protocol.md`, between the lines that name them.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from relay.v1 import agents_pb2 as pb
from tests.simulation.chaos import Chaos
from tests.simulation.faults import Fault
from tests.simulation.network import APPEND, SESSION, Way
from tests.simulation.simulate import live
from tests.simulation.store.storage import Changed
from tests.simulation.world import Order, World

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
_PLACE = "<!-- drawn: {} -->\n```mermaid\n"


ASK = "/relay.v1.Agents/ListRemovals"


@dataclass(frozen=True, slots=True)
class Story:
    """A scenario: one run on two hosts, and what goes wrong."""

    name: str
    order: Order
    faults: Sequence[Fault]
    notes: dict[str, str]  #: what is written where a fault happens, by its kind


STORIES = (
    Story(
        "a host is lost",
        Order("r", "continue", 6, 3, 0.5, 0.0),
        [Fault("power_cut", 3.6, 30.0)],
        {"power_cut": "its power is cut"},
    ),
    Story(
        "a partition under stop",
        Order("r", "stop", 9, 3, 0.5, 0.0),
        [Fault("partition", 3.6, 9.0, ways=(Way.UP, Way.DOWN))],
        {"partition": "cut off from the coordinator"},
    ),
    Story(
        "a failover that loses the last commits",
        Order("r", "continue", 6, 3, 0.5, 0.0),
        [Fault("failover", 3.0, 0.3, amount=1.2)],
        {"failover": "the primary dies. A standby that lacks its last 1.2 s is promoted"},
    ),
)


@dataclass(slots=True)
class Artist:
    """Listens to a world, and writes down the messages that a reader wants to see."""

    story: Story
    lines: list[str] = field(default_factory=list)
    _said: dict[str, str] = field(default_factory=dict)  #: the last desired state and the last `held` by host
    _entries: set[int] = field(default_factory=set)

    def add(self, line: str) -> None:
        """Add a line unless it equals the one before."""
        if not self.lines or self.lines[-1] != line:
            self.lines.append(line)

    def on_message(self, host: str, way: Way, path: str, data: bytes) -> None:
        """Draw a message that is sent."""
        if path == SESSION:
            self._session(host, way, data)
        elif path == APPEND:
            if way is Way.UP and self._said.get(f"{host} events") is None:
                self._said[f"{host} events"] = ""
                self.add(f"    {host}->>C: AppendEvents(offset, lines) …")
        elif way is Way.UP and path != ASK:  # it is asked again and again; what came of it is reported
            self.add(f"    {host}->>C: {_call(path, data)}")

    def _session(self, host: str, way: Way, data: bytes) -> None:
        if way is Way.UP:
            up = pb.SessionRequest.FromString(data)
            if up.HasField("hello"):
                self._said.pop(f"{host} desired", None)
                self.add(f"    {host}->>C: Hello(held: {_held(up.hello.held)})")
            else:
                self._once(host, "held", f"    {host}->>C: Heartbeat(held: {_held(up.heartbeat.held)})")
        else:
            down = pb.SessionResponse.FromString(data)
            match down.WhichOneof("message"):
                case "welcome":
                    self.add(f"    C-->>{host}: Welcome(session, {_records(down.welcome.leases)})")
                case "heartbeat_reply":
                    self._once(
                        host,
                        "desired",
                        f"    C-->>{host}: HeartbeatReply(desired: {_desired(down.heartbeat_reply.leases)})",
                    )
                case "wait":
                    self.add(f"    C-->>{host}: Wait")

    def _once(self, host: str, what: str, line: str) -> None:
        """Draw a heartbeat or a reply only when it differs from the last one: each carries everything every time."""
        if self._said.get(f"{host} {what}") != line:
            self._said[f"{host} {what}"] = line
            self.add(line)

    def committed(self, changes: Sequence[Changed]) -> None:
        """Draw the events that were appended to a run's history."""
        for change in changes:
            if change.table == "run_events" and change.before is None and change.after is not None:
                self.add(f"    Note over C: {change.after['kind']}: {_plain(change.after['message'])}")

    def happened(self, text: str) -> None:
        """Draw a fault."""
        for kind, note in self.story.notes.items():
            if f" {kind} " in text:
                self.add(f"    Note over {'C' if kind == 'failover' else 'a'}: {note}")


def _call(path: str, data: bytes) -> str:
    name = path.rpartition("/")[2]
    match name:
        case "StartAttempt":
            begins = pb.StartAttemptRequest.FromString(data)
            return f"StartAttempt({'from its checkpoint' if begins.checkpoint else 'from the beginning'})"
        case "RegisterCheckpoint":
            return (
                f"RegisterCheckpoint(step {pb.RegisterCheckpointRequest.FromString(data).step}, after its event line)"
            )
        case "ReportRemovals":
            steps = [str(each.step) for each in pb.ReportRemovalsRequest.FromString(data).removals]
            return f"ReportRemovals(its copies of step {', '.join(steps)})"
        case "CompleteLease":
            return f"CompleteLease({pb.CompleteLeaseRequest.FromString(data).WhichOneof('outcome')}, final offsets)"
    return name


def _held(leases: Sequence[pb.HeldLease]) -> str:
    return ", ".join(pb.HeldLease.Phase.Name(each.phase).lower() for each in leases) or "nothing"


def _desired(leases: Sequence[pb.DesiredLease]) -> str:
    return ", ".join("run" if each.action == pb.DesiredLease.RUN else "stop" for each in leases) or "nothing"


def _records(leases: Sequence[pb.LeaseRecord]) -> str:
    return "; ".join("what is stored of the lease" for _ in leases) or "no lease"


def _plain(text: str) -> str:
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "…", text).replace(";", ",").replace("#", "no. ")


def drawn(story: Story) -> str:
    """The diagram of one story."""
    folder = Path(tempfile.mkdtemp(prefix="relay-story-"))
    try:
        return _drawn(story, World(0, folder, hosts=2, orders=[story.order]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _drawn(story: Story, world: World) -> str:
    artist = Artist(story)
    world.network.on_message = artist.on_message
    world.storage.observers.append(artist.committed)
    note: Callable[[str], None] = world.note

    def noted(text: str) -> None:
        note(text)
        artist.happened(text)

    world.note = noted  # type: ignore[method-assign]
    try:
        world.loop.run_until_complete(live(world, Chaos(world), story.faults))
    finally:
        world.close()
    head = [
        "sequenceDiagram",
        "    participant C as coordinator",
        "    participant a as host a",
        "    participant b as host b",
    ]
    return "\n".join([*head, *artist.lines]) + "\n"


def page() -> str:
    """`docs/protocol.md` with its diagrams as they are now."""
    text = PAGE.read_text()
    for story in STORIES:
        begin = _PLACE.format(story.name)
        before, rest = text.split(begin)
        _, after = rest.split("```", 1)
        text = f"{before}{begin}{drawn(story)}```{after}"
    return text
