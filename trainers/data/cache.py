"""What is kept on this host from one attempt to the next: each thing in a folder, whose name says what it is."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from trainers.errors import HostError

FOLDER = "RELAY_DATA_CACHE"  #: names the folder of all
UNUSED, UNFINISHED = 30 * 24 * 3600, 24 * 3600  #: seconds after which a thing goes, and what became none
_DRAFT = ".tmp-"


def place(*what: Any) -> Path:
    """The folder for what these JSON values name; it need not be there. Being asked for, it counts as used."""
    folder = _root() / hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
    with suppress(FileNotFoundError):
        os.utime(folder)
    return folder


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when that went well, unless another process was first. What nobody has
    used for long goes. Raises HostError when this host's disk fails, where the writer says so by `writing`.
    """
    draft = folder.with_name(f"{_DRAFT}{uuid4().hex}")
    try:
        with writing(draft):
            draft.mkdir(parents=True)
            _tidy(folder.parent)
        yield draft
        with writing(folder):
            _sync(draft)
            try:
                draft.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong in here is this host's disk."""
    try:
        yield
    except OSError as error:
        raise HostError(f"data: {path.parent} takes nothing ({error.strerror}); ${FOLDER} names another") from error


def _sync(folder: Path) -> None:
    """So that after a host's crash a name never stands for half a thing."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _root() -> Path:
    return Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "relay" / "data")


def _tidy(root: Path) -> None:
    for folder in root.iterdir():
        with suppress(FileNotFoundError):
            limit = UNFINISHED if folder.name.startswith(_DRAFT) else UNUSED
            if time.time() - folder.stat().st_mtime > limit:
                shutil.rmtree(folder, ignore_errors=True)
