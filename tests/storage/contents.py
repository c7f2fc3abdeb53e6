"""What lies in a store, past its own code; folders to put there; and a checker of registry against store."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import obstore

from storage.base import FolderKey, LocateFile
from storage.manifest import MANIFEST_FILE, Manifest, ManifestError, describe_folder, digest_bytes
from tests.seaweed import client, objects

LEASE = "1" * 32


def folder_key(step: int | None = 1, lease: str = LEASE, *, run: str = "r", attempt: int = 1) -> FolderKey:
    return FolderKey(run=run, framework="hf", attempt=attempt, lease=lease, step=step)


def folder(path: Path, *, step: int = 1, big: int = 300_000, files: int = 0) -> Manifest:
    """A checkpoint of a few files of every kind, with its manifest."""
    (path / "deep").mkdir(parents=True, exist_ok=True)
    (path / "weights.bin").write_bytes(os.urandom(big))
    (path / "deep" / "run me ~#1.sh").write_bytes(b"#!/bin/sh\n")
    (path / "deep" / "run me ~#1.sh").chmod(0o755)
    (path / "empty").touch()
    for number in range(files):
        (path / f"shard-{number:02d}.bin").write_bytes(os.urandom(big))
    manifest = describe_folder(path, step=step)
    (path / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    return manifest


def locate_in(path: Path) -> LocateFile:
    return lambda file: path / file.path


@dataclass(frozen=True)
class StoreContents:
    """The store at `base`; `address` is its server's."""

    base: str
    address: str = ""

    @property
    def _root(self) -> str:
        return self.base.removeprefix("file://") if not self.address else self.base.split("/", 3)[3]

    def names(self) -> dict[str, int]:
        """Everything below the base, with its size."""
        if self.address:
            return {key.removeprefix(f"{self._root}/"): size for key, size in objects(self.address, self._root).items()}
        root = Path(self._root)
        return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}

    def leftovers(self) -> list[str]:
        """What no whole folder has: neither a file of its manifest, nor the index."""
        names = self.names()
        placed = (name for name in names if not name.startswith(".relay/"))  # what is on its way has half a manifest
        whole = {name.removesuffix(MANIFEST_FILE) for name in placed if name.rpartition("/")[2] == MANIFEST_FILE}
        owned = {"index.jsonl"}
        for folder in whole:
            manifest = Manifest.from_bytes(self.read(f"{folder}{MANIFEST_FILE}"))
            owned |= {f"{folder}{MANIFEST_FILE}", *(f"{folder}{file.path}" for file in manifest.files)}
        return sorted(names.keys() - owned)

    def read(self, name: str) -> bytes:
        if self.address:
            return bytes(obstore.get(client(self.address), f"{self._root}/{name}").bytes())
        return Path(self._root, name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Damage."""
        if self.address:
            obstore.put(client(self.address), f"{self._root}/{name}", data)
        else:
            path = Path(self._root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(data)

    def erase(self, names: Iterable[str]) -> None:
        """Remove objects, past the store's own code."""
        if keys := [f"{self._root}/{name}" for name in names]:
            obstore.delete(client(self.address), keys)

    def flip_bit(self, name: str) -> None:
        """As a disk does: a bit is another one, also under the file's other names."""
        data = bytearray(self.read(name))
        data[len(data) // 2] ^= 1
        if self.address:
            self.write(name, bytes(data))
        else:
            with Path(self._root, name).open("r+b") as file:
                file.write(data)

    def below(self, uri: str) -> str:
        return uri.removeprefix(f"{self.base}/")

    def find_differences(self, registry: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Where the registry, a list of (uri, digest), and the store differ. Every byte is looked at."""
        for uri, digest in registry:
            try:
                manifest = Manifest.from_bytes(self.read(f"{self.below(uri)}/{MANIFEST_FILE}"))
            except (FileNotFoundError, ManifestError) as error:
                yield f"{uri}: {error}"
                continue
            if manifest.digest != digest:
                yield f"{uri}: another manifest"
            for file in manifest.files:
                try:
                    if digest_bytes(self.read(f"{self.below(uri)}/{file.path}")) != file.digest:
                        yield f"{uri}: {file.path} is damaged"
                except FileNotFoundError:
                    yield f"{uri}: {file.path} is gone"
