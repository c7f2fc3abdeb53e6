"""What one attempt publishes: counted while it is on its way."""

from functools import partial
from pathlib import Path

import pytest

from agent.events.journal import Journal
from agent.stores.publishing import AttemptStore, open_run_store
from agent.stores.retry import StoreRetry
from agent.stores.transfers import Transfers
from relay.v1 import fleet_pb2
from runfile import RunFile
from storage.base import FolderKey, StoreRefused
from storage.folder import FolderStore
from storage.manifest import Manifest, describe_folder
from storage.stores import StoresByScheme
from storage.throttling import RateLimit

LEASE = "runs/r/leases/" + "1" * 32
PLACE = FolderKey(run="r", framework="hf", attempt=1, lease="1" * 32, step=4)


def folder(path: Path) -> Manifest:
    path.mkdir(parents=True)
    (path / "weights.bin").write_bytes(bytes(100_000))
    return describe_folder(path, step=4)


async def test_f11_a_share_that_is_mounted_later_gets_it_then(tmp_path: Path) -> None:
    manifest, share, transfers = folder(tmp_path / "from"), tmp_path / "share", Transfers()
    seen: list[fleet_pb2.Transfer] = []

    def clock() -> float:
        """Looked at before the first try and after each that failed."""
        seen.extend(transfers.attach_to(fleet_pb2.Readings(cpu_fraction=0.5)).transfers)
        if len(seen) == 2:
            share.mkdir()
        return float(len(seen))

    stored = AttemptStore(
        lease=LEASE,
        store=FolderStore(share.as_uri(), writer="a"),
        retry=StoreRetry(Journal(tmp_path / "agent.jsonl", lambda: 0.0), clock, first_pause=0.0, tell_after=1.0),
        transfers=transfers,
    )
    uri = await stored.put(PLACE, manifest, lambda file: tmp_path / "from" / file.path)
    assert uri is not None and await stored.store.has(uri, manifest.digest)
    said = (tmp_path / "agent.jsonl").read_text()
    assert said.count("upload_failing") == 1 and said.count("works again") == 1
    assert {(told.lease, told.step, told.done_bytes, told.total_bytes) for told in seen} == {(LEASE, 4, 0, 100_000)}
    assert not transfers.attach_to(fleet_pb2.Readings()).transfers


def test_the_run_file_names_the_store() -> None:
    def make_run_file(store: str, layout: str = "relay") -> RunFile:
        spec = {"version": "relay/v1", "name": "r", "method": "command", "command": ["true"]}
        return RunFile.model_validate({**spec, "checkpoint": {"store": store, "layout": layout}})

    relay = FolderStore()
    chosen = partial(open_run_store, stores=StoresByScheme({"relay": relay}), writer="a", rate_limit=RateLimit())
    assert chosen(make_run_file("relay://")) is relay
    found = chosen(make_run_file("file:///mnt/share", "framework"))
    assert isinstance(found, FolderStore)
    assert found.uri_of(PLACE) == f"file:///mnt/share/r/framework%3Dhf/checkpoints/0001-{'1' * 32}/step_00000004"
    assert chosen(make_run_file("s3://bucket/x")).scheme == "s3"
    with pytest.raises(StoreRefused):
        chosen(make_run_file("hf://me/repo"))
