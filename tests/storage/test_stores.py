"""From a uri to its store."""

import subprocess
import sys
from pathlib import Path

import pytest

from storage.base import StoreRefused
from storage.stores import StoresByScheme, open_store
from tests.storage.contents import folder, folder_key, locate_in

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("base", ["file:///mnt/x", "s3://bucket/x", "gs://bucket", "az://container/y"])
def test_each_scheme_has_its_store(base: str) -> None:
    assert open_store(base).scheme == base.partition(":")[0]
    assert StoresByScheme()[base.partition(":")[0]].scheme == base.partition(":")[0]


@pytest.mark.parametrize("base", ["relay://", "ftp://x", "s3://k:s@bucket"])
def test_what_is_no_such_store_is_refused(base: str) -> None:
    with pytest.raises(StoreRefused):
        open_store(base)


async def test_a_store_that_only_reads_has_nowhere_to_put(tmp_path: Path) -> None:

    manifest = folder(tmp_path / "from")
    for store in StoresByScheme().values():
        with pytest.raises(StoreRefused, match="no base"):
            await store.put(folder_key(), manifest, locate_in(tmp_path / "from"))


WITHOUT = """
import asyncio, sys
sys.modules["obstore"] = None
from storage.base import StoreRefused
from storage.stores import StoresByScheme, open_store
print(StoresByScheme().get("s3"), StoresByScheme().get("nfs"))
try:
    asyncio.run(open_store("s3://bucket/x").has("s3://bucket/x/y", "sha256:" + "0" * 64))
except StoreRefused as refused:
    print(refused)
"""


def test_without_obstore_it_says_what_to_install() -> None:
    argv = [sys.executable, "-c", WITHOUT]
    ended = subprocess.run(argv, cwd=ROOT / "proto", capture_output=True, text=True, check=True)
    assert "None None" in ended.stdout
    assert "needs obstore, which is not installed: pip install 'relay-training[stores]'" in ended.stdout


def test_importing_the_stores_loads_no_heavy_library() -> None:
    code = "import sys, storage.stores, runfile; print('obstore' in sys.modules)"
    argv = [sys.executable, "-c", code]
    assert subprocess.run(argv, cwd=ROOT / "proto", capture_output=True, text=True, check=True).stdout == "False\n"
