"""A Hugging Face Hub for tests: the part of its protocol that the real client speaks to resolve and download.

Repositories live in memory as commits; names (`main`, tags) point at them and can be moved. As on the real Hub, weights
are LFS files: a redirect to another origin, with their SHA-256 as the linked ETag. The client must be told before it
is imported: `environ()` is what its process needs.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

Kind = Literal["models", "datasets"]
_LARGE = (".safetensors", ".bin", ".parquet")  #: files kept in LFS


@dataclass
class Repository:
    """Commits by hash, and names for some of them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], name: str = "main") -> str:
        """Point `name` at a new commit of exactly these files; its hash."""
        content = hashlib.sha1(str(len(self.commits)).encode())
        for path in sorted(files):
            content.update(path.encode() + b"\0" + files[path])
        self.commits[content.hexdigest()] = dict(files)
        self.names[name] = content.hexdigest()
        return content.hexdigest()

    def resolve(self, revision: str) -> str | None:
        """The commit of a name or a hash."""
        return self.names.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Hub:
    """What is stored, and what was asked for."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  #: `METHOD /path`, in order
    failing: bool = False  #: every request is answered 503
    endpoint: str = ""
    storage: str = ""  #: the other origin, where LFS files are

    def repository(self, kind: Kind, name: str) -> Repository:
        return self.repositories.setdefault((kind, name), Repository())

    def environ(self, cache: Path) -> dict[str, str]:
        """Set this for a process before it imports the client. No proxy, no xet, a cache of its own."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder's files, to be committed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub on loopback, gone at the end; whoever asks then is refused the connection."""
    hub = Hub()
    with _listening(_Api, hub) as hub.endpoint, _listening(_Storage, hub) as hub.storage:
        yield hub


@contextmanager
def _listening(handler: "type[_Handler]", hub: Hub) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at `Hub.requests`."""

    def send(self, body: bytes, headers: Mapping[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Storage(_Handler):
    """The other origin: LFS files by digest."""

    def do_GET(self) -> None:
        digest = self.path.rpartition("/")[2]
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                for body in files.values():
                    if hashlib.sha256(body).hexdigest() == digest:
                        return self.send(body, {"ETag": f'"{digest}"'})
        self.send(b"", {}, 404)

    do_HEAD = do_GET


class _Api(_Handler):
    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        parts = [unquote(part) for part in path.strip("/").split("/")]  # split first: revisions come quoted
        if self.hub.failing:
            self.send(b"", {}, 503)
        elif parts[0] == "api" and len(parts) >= 4:
            self._api(parts[1], "/".join(parts[2:4]), parts[4:])
        elif "resolve" in parts:
            at = parts.index("resolve")
            kind = "datasets" if parts[0] == "datasets" else "models"
            self._file(kind, "/".join(parts[at - 2 : at]), parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            self._missing("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """`paths-info`: which of some paths there are."""
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if self.hub.failing:
            return self.send(b"", {}, 503)
        found = self._commit(parts[1], "/".join(parts[2:4]), parts[5])
        if found:
            self._json([entry for entry in _tree(found[1], "") if entry["path"] in asked["paths"]])

    def _api(self, kind: str, name: str, rest: list[str]) -> None:
        """`[]`, `[revision, REV]` or `[tree, REV, folder…]` of a repository."""
        found = self._commit(kind, name, rest[1] if len(rest) > 1 else "main")
        if not found:
            return
        commit, files = found
        if rest[:1] == ["tree"]:
            self._json(_tree(files, "".join(f"{part}/" for part in rest[2:])))
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0})

    def _file(self, kind: str, name: str, revision: str, path: str) -> None:
        found = self._commit(kind, name, revision)
        if not found:
            return
        commit, files = found
        if path not in files:
            return self._missing("EntryNotFound", commit)
        body, headers = files[path], {"X-Repo-Commit": commit}
        if not path.endswith(_LARGE):
            return self.send(body, {**headers, "ETag": f'"{_git_digest(body)}"'})
        digest = hashlib.sha256(body).hexdigest()
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(body))}
        self.send(b"", {**headers, **linked, "Location": f"{self.hub.storage}/{digest}"}, 302)

    def _commit(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files; None when the refusal has been sent."""
        repository = self.hub.repositories.get((kind, name))
        commit = repository and repository.resolve(revision)
        if repository and commit:
            return commit, repository.commits[commit]
        self._missing("RevisionNotFound" if repository else "RepoNotFound")
        return None

    def _missing(self, code: str, commit: str = "") -> None:
        self.send(b"{}", {"X-Error-Code": code, **({"X-Repo-Commit": commit} if commit else {})}, 404)

    def _json(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), {"Content-Type": "application/json"})


def _tree(files: Mapping[str, bytes], folder: str) -> list[dict[str, Any]]:
    """Every file below `folder`, as a recursive listing."""
    entries = []
    for path, body in files.items():
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(body), "oid": _git_digest(body)}
        if path.endswith(_LARGE):
            entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
        if path.startswith(folder):
            entries.append(entry)
    return entries


def _git_digest(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
