"""Stores to test: a folder, and a bucket of a real server, which starts when it is first wanted."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from storage.base import Store
from storage.layout import Layout
from storage.stores import open_store
from tests.seaweed import BUCKET, environment
from tests.storage.contents import StoreContents

MakeStore = Callable[..., Store]


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A uri in a bucket where nothing is yet; the environment has what is needed."""
    for name, value in environment(s3).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid4().hex}"


@pytest.fixture(params=["file", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where each kind of store is."""
    if request.param == "s3":
        return str(request.getfixturevalue("bucket"))
    (tmp_path / "share").mkdir()
    return (tmp_path / "share").as_uri()


@pytest.fixture
def store(base: str) -> Store:
    return open_store(base, Layout.RELAY, writer="a")


@pytest.fixture
def kept(base: str, request: pytest.FixtureRequest) -> StoreContents:
    """What really lies there."""
    return StoreContents(base, request.getfixturevalue("s3") if base.startswith("s3") else "")
