"""A Hugging Face Hub for tests, in memory and on loopback: the part of its protocol that the real client speaks.

Repositories are made, committed to with a parent that must be the head, branched, tagged, squashed and read; weights
are LFS files, uploaded to and read from another origin, in one piece or in parts. Faults can be planned (`Hub.faults`),
tokens given (`Hub.tokens`). Xet is not supported, which the client must know before it is imported; `environ()` is what
its process needs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub.faults import Fault, Faults
from tests.hub.repository import LARGE, Commit, Exists, File, Kind, Lfs, Repository, StaleParent, Unknown, files_of

__all__ = ["Hub", "files_of", "serving"]

PART = 64 * 1024  #: files beyond this are uploaded in parts of it


@dataclass
class Hub:
    """What is stored, and what was asked for."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  #: `METHOD /path`, in order
    transfers: list[str] = field(default_factory=list)  #: the same, of the other origin
    faults: Faults = field(default_factory=Faults)
    tokens: dict[str, str] = field(default_factory=dict)  #: `read` or `write` by token; none: whoever comes may do all
    failing: bool = False  #: every request is answered 503
    endpoint: str = ""
    storage: str = ""  #: the other origin, where LFS files are
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)  #: of uploads that are not complete, by digest

    def repository(self, kind: Kind, name: str) -> Repository:
        return self.repositories.setdefault((kind, name), Repository())

    def model(self, name: str) -> Repository:
        """A model's repository, which must be there."""
        return self.repositories["models", name]

    def environ(self, cache: Path) -> dict[str, str]:
        """Set this for a process before it imports the client. No proxy, no xet, a cache of its own."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub on loopback, gone at the end; whoever asks then is refused the connection."""
    hub = Hub()
    # Clients of 1.x tell an origin by its host's name alone.
    with _listening(_Api, hub) as hub.endpoint, _listening(_Storage, hub, "localhost") as hub.storage:
        try:
            yield hub
        finally:
            hub.faults.clear()


@contextmanager
def _listening(handler: type[_Handler], hub: Hub, name: str = "127.0.0.1") -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://{name}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, error: str, code: str = "", **headers: str) -> None:
        super().__init__(error)
        self.status, self.error = status, error
        self.headers = {**({"X-Error-Code": code} if code else {}), "X-Error-Message": error, **headers}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at `Hub.requests`."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # whoever asked was killed
            self.close_connection = True

    def answer(self) -> None:
        """Any request, and what a test has planned for it."""
        request = f"{self.command} {urlsplit(self.path).path}"
        self.heard.append(request)
        fault = self.hub.faults.next(request)
        if fault is not None and not self._let_pass(fault):
            return
        body = self._body()
        if self.hub.failing:
            return self.send(b"", {}, 503)
        try:
            sent = self.do(body)
        except _Refused as refusal:
            sent = (json.dumps({"error": refusal.error}).encode(), refusal.headers, refusal.status)
        if fault is not None:  # the request is carried out and its reply lost
            if fault.action == "hang":
                self.hub.faults.stall()
            self.close_connection = True
            return
        self.send(*sent)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def _let_pass(self, fault: Fault) -> bool:
        match fault.action:
            case "lose" | "hang":
                return True
            case "refuse":
                self._body()
                self.send(b'{"error": "planned"}', {**fault.headers, "X-Error-Message": "planned"}, fault.status)
            case "half":
                self.rfile.read(int(self.headers.get("Content-Length") or 2) // 2)
                self.close_connection = True
            case "stall":
                self.hub.faults.stall()
                self.close_connection = True
            case "drop":
                self.close_connection = True
        return False

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            length = int(self.headers.get("Content-Length") or 0)
            if len(body := self.rfile.read(length)) < length:
                raise ConnectionResetError("half a request")
            return body
        pieces = []
        while size := int(self.rfile.readline() or b"0", 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    @property
    def heard(self) -> list[str]:
        """Where requests are written down."""
        return self.hub.requests

    def do(self, body: bytes) -> tuple[bytes, Mapping[str, str], int]:
        raise NotImplementedError

    def send(self, body: bytes, headers: Mapping[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


_Answer = tuple[bytes, Mapping[str, str], int]


def _json(value: Any, status: int = 200) -> _Answer:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}, status


class _Storage(_Handler):
    """The other origin: `/kind/owner/name/digest`, whole or, below it, its parts."""

    @property
    def heard(self) -> list[str]:
        return self.hub.transfers

    def do(self, body: bytes) -> _Answer:
        kind, owner, name, digest, *part = urlsplit(self.path).path.strip("/").split("/")
        repository = self.hub.repositories[kind, f"{owner}/{name}"]
        if self.command in ("GET", "HEAD"):
            return self._piece(repository, digest)
        if part:
            self.hub.parts.setdefault(digest, {})[int(part[0])] = body
            return b"", {"ETag": f'"{part[0]}"'}, 200
        if self.command == "POST":  # completes an upload in parts
            pieces = self.hub.parts.pop(digest, {})
            body = b"".join(pieces[number] for number in sorted(pieces))
        if hashlib.sha256(body).hexdigest() != digest:
            raise _Refused(400, "the content does not match its digest")
        repository.large[digest] = body
        return _json({})

    def _piece(self, repository: Repository, digest: str) -> _Answer:
        body = repository.large.get(digest)
        if body is None:
            raise _Refused(404, "no such object")
        headers = {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if not asked:
            return body, headers, 200
        begin, _, end = asked.removeprefix("bytes=").partition("-")
        piece = body[int(begin) : int(end) + 1 if end else None]
        return piece, headers | {"Content-Range": f"bytes {begin}-{int(begin) + len(piece) - 1}/{len(body)}"}, 206


class _Api(_Handler):
    def do(self, body: bytes) -> _Answer:
        parts = [
            unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")
        ]  # split first: revisions come quoted
        match self.command, parts:
            case _, ["api", "whoami-v2"]:
                return _json({"type": "user", "name": self._user(), "orgs": [], "auth": {"type": "access_token"}})
            case _, ["api", "validate-yaml"]:
                return self._validate(json.loads(body)["content"])
            case _, ["api", "repos", "create"]:
                return self._create(json.loads(body))
            case "POST", [*place, "info", "lfs", "objects", verb]:
                kind = "datasets" if place[0] == "datasets" else "models"
                return self._lfs(kind, "/".join(place[-2:]).removesuffix(".git"), verb, json.loads(body))
            case _, ["api", kind, owner, name, *rest]:
                return self._in(kind, f"{owner}/{name}", rest, body)
            case _, parts if "resolve" in parts:
                at = parts.index("resolve")
                kind = "datasets" if parts[0] == "datasets" else "models"
                return self._file(kind, "/".join(parts[at - 2 : at]), parts[at + 1], "/".join(parts[at + 2 :]))
        raise _Refused(404, "not found", "RepoNotFound")

    # Who may

    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _user(self) -> str:
        if self.hub.tokens and self._token() not in self.hub.tokens:
            raise _Refused(401, "Invalid username or password.")
        return "me"

    def _may_write(self) -> None:
        self._user()
        if self.hub.tokens and self.hub.tokens[self._token()] != "write":
            raise _Refused(403, "Forbidden: this token may not write here")

    def _repository(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        stranger = bool(self.hub.tokens) and self._token() not in self.hub.tokens
        if repository is None or (repository.private and stranger):
            raise _Refused(401 if stranger else 404, "Repository Not Found", "RepoNotFound")
        return repository

    # What may be asked

    def _validate(self, content: str) -> _Answer:
        errors: list[dict[str, str]] = []
        if content.startswith("---\n"):
            try:
                given = yaml.safe_load(content.split("---\n")[1])
            except yaml.YAMLError as error:
                errors = [{"message": str(error)}]
            else:
                base = given.get("base_model", "a/b")
                if any(not isinstance(name, str) or name.count("/") > 1 or name[:1] in "./" for name in [base]):
                    errors = [{"message": f'"base_model" is no model id: {base}'}]
        return _json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _create(self, asked: dict[str, Any]) -> _Answer:
        self._may_write()
        kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.hub.endpoint}/{name}"}
        if (kind, name) in self.hub.repositories:
            return _json({"error": "You already created this model repo", **url}, 409)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repository = self.hub.repositories[kind, name] = Repository(private=private)
        repository.append(
            "main", {".gitattributes": b"*.safetensors filter=lfs\n"}, title="initial commit", author="me"
        )
        return _json(url)

    def _lfs(self, kind: str, name: str, verb: str, asked: dict[str, Any]) -> _Answer:
        self._may_write()
        repository = self._repository(kind, name)
        if verb == "verify":
            if asked["oid"] not in repository.large:
                raise _Refused(404, "the object is not there")
            return _json({})
        return _json({"objects": [self._upload(kind, name, repository, each) for each in asked["objects"]]})

    def _upload(self, kind: str, name: str, repository: Repository, asked: dict[str, Any]) -> dict[str, Any]:
        place = f"{self.hub.storage}/{kind}/{name}/{asked['oid']}"
        if asked["oid"] in repository.large:
            return asked
        upload: dict[str, Any] = {"href": place}
        if asked["size"] > PART:
            count = -(-asked["size"] // PART)
            urls = {f"{number:05d}": f"{place}/{number}" for number in range(1, count + 1)}
            upload["header"] = {"chunk_size": str(PART), **urls}
        verify = {"href": f"{self.hub.endpoint}/{name}.git/info/lfs/objects/verify"}
        return asked | {"actions": {"upload": upload, "verify": verify}}

    def _in(self, kind: str, name: str, rest: list[str], body: bytes) -> _Answer:
        """Below `/api/models/owner/name`."""
        repository = self._repository(kind, name)
        if self.command in ("POST", "DELETE") and rest[:1] not in (["paths-info"],):
            self._may_write()
        try:
            return self._verb(repository, name, rest, body)
        except Unknown as unknown:
            raise _Refused(404 if str(unknown).isalpha() else 400, str(unknown), str(unknown)) from unknown
        except Exists as exists:
            raise _Refused(409, "Reference already exists") from exists
        except StaleParent as stale:
            raise _Refused(412, "A commit has happened since. Please refresh and try again.") from stale

    def _verb(self, repository: Repository, name: str, rest: list[str], body: bytes) -> _Answer:
        form = "x-www-form-urlencoded" in self.headers.get("Content-Type", "")
        plain = body and rest[0] != "commit" and not form
        asked: dict[str, Any] = json.loads(body) if plain else dict(parse_qs(body.decode())) if form else {}
        match self.command, rest:
            case "GET", [] | ["revision", _]:
                commit = repository.resolve(rest[1] if rest else "main")
                siblings = [{"rfilename": path} for path in commit.files]
                facts = {"id": name, "sha": commit.id, "siblings": siblings, "private": repository.private}
                return _json({**facts, "tags": [], "downloads": 0})
            case "GET", ["refs"]:
                return _json(_refs(repository))
            case "GET", ["commits", revision]:
                return _json([_shown(commit) for commit in repository.history(revision)])
            case "GET", ["tree", revision, *folder]:
                return _json(_tree(repository.resolve(revision).files, "".join(f"{part}/" for part in folder)))
            case "POST", ["paths-info", revision]:
                entries = _tree(repository.resolve(revision).files, "")
                return _json([entry for entry in entries if entry["path"] in asked["paths"]])
            case "POST", ["preupload", revision]:
                return _json({"files": _modes(repository.resolve(revision).files, asked["files"])})
            case "POST", ["commit", branch]:
                return self._commit(repository, name, branch, [json.loads(line) for line in body.splitlines() if line])
            case _:
                return self._rename(repository, rest, asked)

    def _rename(self, repository: Repository, rest: list[str], asked: dict[str, Any]) -> _Answer:
        """What moves names, and what frees."""
        match self.command, rest:
            case "POST", ["branch", branch]:
                repository.branch(branch, asked.get("startingPoint", "main"))
            case "POST", ["tag", revision]:
                repository.tag(asked["tag"], revision)
            case "DELETE", ["tag", tag]:
                repository.untag(tag)
            case "POST", ["super-squash", branch]:
                repository.squash(branch, asked["message"], self._user())
            case "GET", ["lfs-files"]:
                return _json(_large(repository))
            case "POST", ["lfs-files", "batch"]:
                for digest in asked["deletions"]["sha"]:
                    repository.large.pop(digest, None)
            case _:
                raise _Refused(404, "not found")
        return _json({})

    def _commit(self, repository: Repository, name: str, branch: str, lines: list[dict[str, Any]]) -> _Answer:
        header, *operations = lines
        files = dict(repository.resolve(branch).files)
        for operation in operations:
            _apply(files, operation["key"], operation["value"], repository.large)
        said = header["value"]
        commit = repository.append(
            branch,
            files,
            title=said["summary"],
            message=said["description"],
            author=self._user(),
            parent=said.get("parentCommit", ""),
        )
        url = f"{self.hub.endpoint}/{name}/commit/{commit.id}"
        return _json({"success": True, "commitOid": commit.id, "commitUrl": url, "hookOutput": ""})

    def _file(self, kind: str, name: str, revision: str, path: str) -> _Answer:
        repository = self._repository(kind, name)
        try:
            commit = repository.resolve(revision)
        except Unknown as unknown:
            raise _Refused(404, "Revision Not Found", "RevisionNotFound") from unknown
        headers = {"X-Repo-Commit": commit.id}
        file = commit.files.get(path)
        if file is None or (isinstance(file, Lfs) and file.digest not in repository.large):
            raise _Refused(404, "Entry Not Found", "EntryNotFound", **headers)
        if isinstance(file, bytes):
            return file, {**headers, "ETag": f'"{_git_digest(file)}"'}, 200
        linked = {"X-Linked-Etag": f'"{file.digest}"', "X-Linked-Size": str(file.size)}
        return b"", {**headers, **linked, "Location": f"{self.hub.storage}/{kind}/{name}/{file.digest}"}, 302


def _refs(repository: Repository) -> dict[str, Any]:
    def shown(names: Mapping[str, str], kind: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": at} for name, at in names.items()]

    return {"branches": shown(repository.branches, "heads"), "tags": shown(repository.tags, "tags"), "converts": []}


def _shown(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.id,
        "title": commit.title,
        "message": commit.message,
        "authors": [{"user": commit.author}],
        "date": commit.time.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }


def _modes(files: Mapping[str, File], asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def one(file: dict[str, Any]) -> dict[str, Any]:
        there, path = files.get(file["path"]), file["path"]
        oid = None if there is None else there.digest if isinstance(there, Lfs) else _git_digest(there)
        return {
            "path": path,
            "uploadMode": "lfs" if path.endswith(LARGE) else "regular",
            "shouldIgnore": False,
            "oid": oid,
        }

    return [one(file) for file in asked]


def _apply(files: dict[str, File], key: str, value: dict[str, Any], large: Mapping[str, bytes]) -> None:
    """One line of a commit; a copy of a large file does not say its size."""
    actions: dict[str, Callable[[], object]] = {
        "file": lambda: files.update({value["path"]: base64.b64decode(value["content"])}),
        "lfsFile": lambda: files.update(
            {value["path"]: Lfs(value["oid"], value.get("size", len(large.get(value["oid"], b""))))}
        ),
        "deletedFile": lambda: files.pop(value["path"]),
        "deletedFolder": lambda: [
            files.pop(path) for path in list(files) if path.startswith(value["path"].rstrip("/") + "/")
        ],
    }
    actions[key]()


def _large(repository: Repository) -> list[dict[str, Any]]:
    named = {
        file.digest: path
        for commit in repository.commits.values()
        for path, file in commit.files.items()
        if isinstance(file, Lfs)
    }
    return [
        {"fileOid": digest, "oid": digest, "filename": named.get(digest, ""), "size": len(body),
         "pushedAt": "2026-01-01T00:00:00.000Z"}
        for digest, body in repository.large.items()
    ]  # fmt: skip


def _tree(files: Mapping[str, File], folder: str) -> list[dict[str, Any]]:
    """Every file below `folder`, as a recursive listing."""
    entries = []
    for path, file in files.items():
        entry: dict[str, Any] = {
            "type": "file",
            "path": path,
            "size": file.size if isinstance(file, Lfs) else len(file),
        }
        entry["oid"] = _git_digest(path.encode() if isinstance(file, Lfs) else file)
        if isinstance(file, Lfs):
            entry["lfs"] = {"oid": file.digest, "size": file.size, "pointerSize": 134}
        if path.startswith(folder):
            entries.append(entry)
    return entries


def _git_digest(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
