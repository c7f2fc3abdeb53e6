"""Names on the Hugging Face Hub, resolved to a commit once and pinned for all attempts of a run.

Everything of a model is read from a snapshot of the pinned commit on this host's disk. Given a name and a revision, the
libraries would look up some things at `main` (TRL the architecture, PEFT the vocabulary at every save).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, get_session, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from runfile import INIT_BASE, INIT_FROM, DataSource, ModelSection
from storage.loadable import ADAPTER
from trainers.errors import ConfigError, HostError

RepositoryKind = Literal["model", "dataset"]
_TIMEOUT = 30.0  #: seconds; the client itself has no timeout
#: A model's files at the top of its repository; a repository may hold the same weights again in other formats.
_MODEL_FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py", "*.safetensors")
_TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
_OTHER_COPIES = ("*/*.safetensors", "consolidated*.safetensors")
_RESULT_FILES = ("relay.json", "trainer_state.json")  #: what a run leaves beside a model
_HASHING_THREADS = 8
_OLD_WEIGHTS = ("pytorch_model*.bin", "pytorch_model*.json")
_TRANSPORT_ERROR: type[BaseException] = HfHubHTTPError.__mro__[
    1
]  #: the HTTP library's base error: httpx's or httpx2's, by the version of huggingface_hub


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files are (a folder, or a Hub id at a commit), and its name for those who load the result."""

    path: str
    revision: str | None
    name: str
    adapter: str | None = None  #: the folder of another run's adapter, put on the model before training
    origin: str | None = None  #: the checkpoint of another run that the model comes from


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this host's disk."""

    folder: Path
    source: ModelSource  #: where the model comes from, and its public name

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter that is put on the model before training, or None."""
        return Path(self.source.adapter) if self.source.adapter else None


def resolve_model(model: ModelSection, pins: Mapping[str, str]) -> ModelSource:
    """Return the source of the run's model; on the Hub at the pinned commit, else at the current one. Raises
    ConfigError for a model that does not exist.
    """
    if model.init_from is not None:
        return _resolve_init_from(model.init_from, pins)
    name = model.name_or_path or ""
    return _find_local_model(name, model.known_as or name) or ModelSource(
        name, pins.get("model") or resolve_commit(name, model.revision, "model"), name
    )


def resolve_teacher(model: ModelSection, pins: Mapping[str, str]) -> ModelSource:
    """Return the source of the run's teacher; on the Hub at the pinned commit, else at the current one."""
    name = model.name_or_path or ""
    return _find_local_model(name, name) or ModelSource(
        name, pins.get("teacher") or resolve_commit(name, model.revision, "model"), name
    )


def reward_pin_name(name: str) -> str:
    """Return the name of the pin of a reward model on the Hub."""
    return f"reward:{name}"


def resolve_reward_model(name: str, pins: Mapping[str, str]) -> ModelSource:
    """Return the source of a reward model; on the Hub at the pinned commit, else at the current one. Raises ConfigError
    for a model that does not exist.
    """
    return _find_local_model(name, name) or ModelSource(
        name, pins.get(reward_pin_name(name)) or resolve_commit(name, None, "model"), name
    )


def _find_local_model(name: str, known_as: str) -> ModelSource | None:
    """Return the source of a model that is a folder of this host, or None for a name on the Hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        _require_model(folder, name)
        return ModelSource(str(folder.absolute()), None, known_as)
    if name.startswith((".", "/", "~")):
        raise ConfigError(f"model: there is no folder {name}")
    return None


def _resolve_init_from(asked: str, pins: Mapping[str, str]) -> ModelSource:
    """Return the source of another run's result, which the agent has put beside the run: a whole model, or an adapter
    and (unless the Hub has it) its base model.
    """
    folder, base, origin = Path(INIT_FROM).absolute(), Path(INIT_BASE).absolute(), pins.get("init_from", asked)
    if not folder.is_dir():
        raise ConfigError(
            f"model.init_from: only a coordinator finds {asked}; without one, pull it and name its folder: name_or_path"
        )
    name = origin.partition(" ")[0]
    if not (folder / ADAPTER).is_file():
        _require_model(folder, name)
        return ModelSource(str(folder), None, name, origin=origin)
    told = json.loads((folder / ADAPTER).read_text())
    known = str(told.get("base_model_name_or_path") or "")
    if base.is_dir():
        _require_model(base, f"the base model of {name}")
        return ModelSource(str(base), None, known, str(folder), origin)
    if not known:
        raise ConfigError(f"model.init_from: the adapter of {name} does not say what it adapts")
    commit = pins.get("model") or resolve_commit(known, told.get("revision"), "model")
    return ModelSource(known, commit, known, str(folder), origin)


def fetch_model(source: ModelSource) -> LocalModel:
    """Return the model on this host's disk, downloaded if needed.

    Raises ConfigError for a commit that is gone or holds no model, and HostError when the Hub is out of reach.
    """
    if source.revision is None:
        return LocalModel(Path(source.path), source)
    with _hub_errors("model", source.path, source.revision):
        folder = _download_snapshot(source, _MODEL_FILES, _OTHER_COPIES)
        if not any(folder.glob("*.safetensors")):
            folder = _download_snapshot(source, _OLD_WEIGHTS)
    _require_model(folder, source.path)
    return LocalModel(folder, source)


def digest_local_model(source: ModelSource) -> str | None:
    """Return a SHA-256 over the files of a model that is a folder of this host, whatever the folder's name; None for a
    model that a commit or a checkpoint of another run names.
    """
    if source.revision is not None or source.origin is not None:
        return None
    folder = Path(source.path)
    files = {path for pattern in _MODEL_FILES for path in folder.glob(pattern)}
    if not any(path.suffix == ".safetensors" for path in files):
        files |= {path for pattern in _OLD_WEIGHTS for path in folder.glob(pattern)}

    def describe(name: str) -> str:
        with (folder / name).open("rb") as file:
            return f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n"

    names = sorted(path.name for path in files if path.name not in _RESULT_FILES)
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        described = "".join(pool.map(describe, names))
    return f"sha256:{hashlib.sha256(described.encode()).hexdigest()}"


def fetch_tokenizer(source: ModelSource) -> Path:
    """Return the folder of a model's tokenizer on this host's disk. Of a model on the Hub no weights are downloaded.
    Raises as `fetch_model` does.
    """
    if source.revision is None:
        return Path(source.path)
    with _hub_errors("model", source.path, source.revision):
        return _download_snapshot(source, _TOKENIZER_FILES, _OTHER_COPIES)


def _require_model(folder: Path, name: str) -> None:
    """Raise ConfigError when the folder holds no model."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any(list(folder.glob(weights)) for weights in ("*.safetensors", "pytorch_model*.bin")):
        missing.append("weights (*.safetensors)")
    if missing:
        raise ConfigError(f"model.name_or_path: {name} holds no model (it lacks {' and '.join(missing)})")


def _download_snapshot(source: ModelSource, wanted: tuple[str, ...], unwanted: tuple[str, ...] = ()) -> Path:
    """Download the files that match and return their folder."""
    return Path(
        snapshot_download(
            source.path, revision=source.revision, allow_patterns=list(wanted), ignore_patterns=list(unwanted)
        )
    )


def dataset_pin_name(source: DataSource) -> str:
    """Return the name of the pin of a data set on the Hub, e.g. `data:owner/name`."""
    return f"data:{_dataset_name(source)}" + (f"@{source.revision}" if source.revision else "")


def resolve_dataset(source: DataSource, pins: Mapping[str, str]) -> str:
    """Return the commit of a data set on the Hub: the pinned one, else the current one."""
    return pins.get(dataset_pin_name(source)) or resolve_commit(_dataset_name(source), source.revision, "dataset")


def load_dataset_rows(source: DataSource, commit: str) -> Iterable[Mapping[str, Any]]:
    """Return the rows of one split (default: train) of a data set on the Hub."""
    from datasets import load_dataset
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

    name = _dataset_name(source)
    with _hub_errors("dataset", name, commit):
        try:
            rows: Iterable[Mapping[str, Any]] = load_dataset(
                name, source.name, split=source.split or "train", revision=commit
            )
        except (DatasetNotFoundError, DataFilesNotFoundError, ValueError) as error:
            raise ConfigError(f"data: {name}: {' '.join(str(error).split())}") from error
    return rows


def resolve_commit(name: str, revision: str | None, kind: RepositoryKind) -> str:
    """Return the commit that a branch, tag or prefix names now; from the local cache where the Hub is out of reach.

    Raises ConfigError for what the Hub does not have, and HostError when there is neither Hub nor cache.
    """
    try:
        with _hub_errors(kind, name, revision):
            return str(HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=_TIMEOUT).sha)
    except HostError as away:
        return _find_cached_commit(name, revision, kind, away)


def _find_cached_commit(name: str, revision: str | None, kind: RepositoryKind, away: HostError) -> str:
    """Return the commit in the local cache. Raises the given error when there is none."""
    try:  # only where the snapshot lies: which files of it are here is seen when they are needed
        place = snapshot_download(name, revision=revision, repo_type=kind, local_files_only=True, allow_patterns=[])
    except LocalEntryNotFoundError:
        raise away from None
    return Path(place).name


@contextmanager
def _hub_errors(kind: RepositoryKind, name: str, revision: str | None) -> Iterator[None]:
    """Turn the Hub client's errors into ConfigError (the Hub does not have it) or HostError (the Hub is out
    of reach).
    """
    get_session().timeout = _TIMEOUT
    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        at = f" at revision {revision}" if revision else ""
        raise ConfigError(
            f"{kind}: the Hub has no {name}{at} that can be read; is the name right, is HF_TOKEN needed?"
        ) from error
    except (OfflineModeIsEnabled, OSError, _TRANSPORT_ERROR) as error:
        reason = str(error).partition("\n")[0]
        raise HostError(f"{kind}: the Hub is out of reach and {name} is not in the cache ({reason})") from error


def _dataset_name(source: DataSource) -> str:
    """Return the data set's name on the Hub."""
    return (source.path or "").removeprefix("hf://").removeprefix("datasets/")
