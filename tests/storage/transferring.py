"""A process that puts folders, or fetches them, until it is killed.

    python -m tests.storage.transferring put|fetch BASE FOLDER

It says on stdout what has begun and what is done, a line of JSON for each.
"""

import asyncio
import json
import sys
from pathlib import Path

from storage.base import Store
from storage.manifest import MANIFEST_FILE, Manifest
from storage.stores import open_store
from tests.storage.contents import folder_key, locate_in


async def put(store: Store, folder: Path) -> None:
    """One place after another, each with the folder's bytes; places that are there already cost nothing."""
    manifest = Manifest.from_bytes((folder / MANIFEST_FILE).read_bytes())
    for step in range(1, 1000):
        say(begun=step)
        uri = await store.put(folder_key(step), manifest, locate_in(folder))
        say(done=step, uri=uri, digest=manifest.digest)


async def fetch(store: Store, folder: Path) -> None:
    """Fetch the folder that stdin names, into one folder after another."""
    job = json.loads(sys.stdin.readline())
    for number in range(int(job["first"]), 1000):
        say(begun=number)
        await store.fetch(job["uri"], job["digest"], folder / str(number))
        say(done=number)


def say(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    verb, base, path = sys.argv[1:]
    asyncio.run({"put": put, "fetch": fetch}[verb](open_store(base, writer="killed"), Path(path)))
