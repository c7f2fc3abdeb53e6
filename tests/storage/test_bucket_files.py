"""Plain files in a real bucket: sent once, and never over something else."""

from pathlib import Path

import obstore
import pytest

from storage.address import parse_address
from storage.base import StoreRefused
from storage.bucket import put_files
from storage.upload import SINGLE
from tests.seaweed import client


def lying(folder: Path, **sizes: int) -> dict[str, Path]:
    for name, size in sizes.items():
        (folder / name).write_bytes(name.encode()[:1] * size)
    return {f"deep/{name}": folder / name for name in sizes}


async def test_small_and_large_files_go_below_the_prefix_once(bucket: str, s3: str, tmp_path: Path) -> None:
    files = lying(tmp_path, empty=0, small=10, large=SINGLE + 1)
    done: list[int] = []
    await put_files(parse_address(bucket), files, done.append)
    assert sum(done) == SINGLE + 11
    stored = {path: client(s3).head(f"{parse_address(bucket).path}/{path}") for path in files}
    assert {path: meta["size"] for path, meta in stored.items()} == {
        "deep/empty": 0,
        "deep/small": 10,
        "deep/large": SINGLE + 1,
    }
    await put_files(parse_address(bucket), files, done.append)
    assert sum(done) == 2 * (SINGLE + 11)
    assert {path: client(s3).head(f"{parse_address(bucket).path}/{path}") for path in files} == stored


@pytest.mark.parametrize("path", ["deep/small", "other"])
async def test_what_is_there_is_never_overwritten(bucket: str, s3: str, tmp_path: Path, path: str) -> None:
    key = f"{parse_address(bucket).path}/{path}"
    obstore.put(client(s3), key, b"theirs")
    with pytest.raises(StoreRefused, match=f"{bucket}/{path} is another file"):
        await put_files(parse_address(bucket), lying(tmp_path, small=10, more=1), lambda done: None)
    assert [meta["path"] for page in obstore.list(client(s3), parse_address(bucket).path) for meta in page] == [key]
