"""Names on the Hugging Face Hub, resolved to a commit once and pinned for all attempts of a run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from relay.runfile import Model, Source
from trainers.errors import ConfigError, HostError

Kind = Literal["model", "dataset"]
_TIMEOUT = 30.0  #: seconds; the client has none of its own
_TRANSPORT: type[BaseException] = HfHubHTTPError.__mro__[
    1
]  #: the HTTP library's base error: httpx's or httpx2's, by the version of huggingface_hub


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files are: a folder, or a Hub id at a commit."""

    path: str
    revision: str | None


def model_source(model: Model, pins: Mapping[str, str]) -> ModelSource:
    """The model to load; of the Hub's, the pinned commit or today's. Raises ConfigError for a model that does not
    exist.
    """
    name = model.name_or_path or ""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.name_or_path: {name} holds no model (there is no config.json in it)")
        return ModelSource(str(folder.absolute()), None)
    if name.startswith((".", "/", "~")):
        raise ConfigError(f"model.name_or_path: there is no folder {name}")
    return ModelSource(name, pins.get("model") or commit_of(name, model.revision, "model"))


def dataset_pin(source: Source) -> str:
    """The pin's name of a data set on the Hub, e.g. `data:owner/name`."""
    return f"data:{_dataset_name(source)}" + (f"@{source.revision}" if source.revision else "")


def dataset_commit(source: Source, pins: Mapping[str, str]) -> str:
    """The pinned commit of a data set on the Hub, or today's."""
    return pins.get(dataset_pin(source)) or commit_of(_dataset_name(source), source.revision, "dataset")


def dataset_rows(source: Source, commit: str) -> Iterable[Mapping[str, Any]]:
    """The rows of one split (default: train) of a data set on the Hub."""
    from datasets import load_dataset

    rows: Iterable[Mapping[str, Any]] = load_dataset(
        _dataset_name(source), source.name, split=source.split or "train", revision=commit
    )
    return rows


def commit_of(name: str, revision: str | None, kind: Kind) -> str:
    """The commit that a branch, tag or prefix names now; from the local cache where the Hub is out of reach.

    Raises ConfigError for what the Hub does not have, HostError when there is neither Hub nor cache.
    """
    try:
        info = HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=_TIMEOUT)
        return str(info.sha)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        at = f" at revision {revision}" if revision else ""
        raise ConfigError(
            f"{kind}: the Hub has no {name}{at} that can be read; is the name right, is HF_TOKEN needed?"
        ) from error
    except (OfflineModeIsEnabled, OSError, _TRANSPORT) as error:
        return _cached_commit(name, revision, kind, error)


def _cached_commit(name: str, revision: str | None, kind: Kind, unreachable: BaseException) -> str:
    try:
        return Path(snapshot_download(name, revision=revision, repo_type=kind, local_files_only=True)).name
    except LocalEntryNotFoundError:
        raise HostError(f"the Hub is out of reach and {name} is not in the cache ({unreachable})") from unreachable


def _dataset_name(source: Source) -> str:
    return (source.path or "").removeprefix("hf://").removeprefix("datasets/")
