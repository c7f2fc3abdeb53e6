"""What can be loaded is written to folders, buckets and the Hub, with a card and without a trainer's state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.hub.commit_markers import CommitMarker
from storage.hub.uris import model_branch
from tests.hub.server import Hub, serving
from tests.relayctl.deployed import relayctl, run_file
from tests.seaweed import BUCKET, environment, objects

REPO = "me/sums"
WRITTEN = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md", "relay.json"}


@pytest.fixture(autouse=True)
def reached(deployment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_COORDINATOR", deployment)


@pytest.fixture(scope="module")
def share(deployment: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs have ended, with an adapter and a trainer's state in each checkpoint (5, 10) and in the result (12):
    `sums` in the coordinator's own store, `elsewhere` in this folder."""
    folder = tmp_path_factory.mktemp("submitter")
    (folder / "share").mkdir()
    stores = {"sums": "relay://", "elsewhere": (folder / "share").as_uri()}
    keep = 'checkpoint.keep={"last": 3, "metric": "eval_loss"}'
    for name, store in stores.items():
        file = run_file(folder, name, ADAPTER="1")
        at = ("--coordinator", deployment)
        relayctl(*at, "submit", file, "--set", f"checkpoint.store={store}", "--set", keep, "-q")
        relayctl(*at, "wait", name, "--timeout", "60s")
    return folder / "share"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub, and the variables in the environment with which a user reaches it."""
    with serving() as hub:
        hub.tokens = {"hf_mine": "write", "hf_reader": "read"}
        for name, value in (hub.environ(tmp_path / "cache") | {"HF_TOKEN": "hf_mine"}).items():
            monkeypatch.setenv(name, value)
        yield hub


def contents(folder: Path) -> dict[str, str]:
    """Texts by path."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("run", ["sums", "elsewhere"])
def test_a_result_is_written_to_a_folder_as_it_is_loaded(share: Path, tmp_path: Path, run: str) -> None:
    out = tmp_path / "new" / "folder"
    said = relayctl("export", run, "--to", str(out)).stdout
    assert said.startswith(f"the result of {run} is in {out}: 5 files, ")
    found = contents(out)
    assert set(found) == WRITTEN and found["adapter_model.safetensors"] == "weights of step 12"
    told = json.loads(found["relay.json"])
    assert (told["run"], told["step"], told["final"], told["attempt"], told["model"]) == (run, 12, True, 1, "org/base")
    assert "library_name: peft" in found["README.md"] and "| peft | 1.0 |" in found["README.md"]
    assert "| 1 | local-1 | the beginning | succeeded |" in found["README.md"]
    assert "| eval_loss | 0.1 |" in found["README.md"]


@pytest.mark.parametrize(("point", "step"), [("sums@5", 5), ("elsewhere@latest", 10), ("sums@best", 10)])
def test_a_checkpoint_is_written_without_its_trainers_state(share: Path, tmp_path: Path, point: str, step: int) -> None:
    (tmp_path / "out").mkdir()  # one that is there will do, when it is empty
    relayctl("export", point, "--to", (tmp_path / "out").as_uri())
    found = contents(tmp_path / "out")
    assert set(found) == WRITTEN and found["adapter_model.safetensors"] == f"weights of step {step}"
    told = json.loads(found["relay.json"])
    assert (told["step"], told["final"], told["checkpoint"][:7]) == (step, False, "sha256:")
    assert f"| eval_loss | {1 / step:.6g} |" in found["README.md"]


def test_a_bucket_has_the_same_files_as_plain_objects(
    share: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(s3).items():
        monkeypatch.setenv(name, value)
    to = f"s3://{BUCKET}/models/sums"
    assert f"step 5 of sums is in {to}: 5 files" in relayctl("export", "sums@5", "--to", to).stdout
    relayctl("export", "sums@5", "--to", str(tmp_path / "out"))
    local = {path: len(text.encode()) for path, text in contents(tmp_path / "out").items()}
    assert objects(s3, "models/sums/") == {f"models/sums/{path}": size for path, size in local.items()}
    relayctl("export", "sums@5", "--to", to)  # again
    said = relayctl("export", "sums@10", "--to", to, code=1).stderr
    assert f"{to} does not take it" in said and "not overwritten; name another prefix" in said
    assert objects(s3, "models/sums/") == {f"models/sums/{path}": size for path, size in local.items()}
    assert "no such bucket" in relayctl("export", "sums", "--to", "s3://missing/x", code=1).stderr


def marks(hub: Hub, branch: str = "main") -> list[tuple[str, str, int]]:
    """Of Relay's commits, newest first."""
    found = [CommitMarker.parse(commit.message) for commit in hub.model(REPO).history(branch)]
    return [(mark.run, mark.kind, mark.step) for mark in found if mark]


def test_the_hub_gets_one_commit_and_the_same_one_when_it_is_said_again(share: Path, hub: Hub) -> None:
    said = relayctl("export", "sums@5", "--to", f"hf://{REPO}").stdout
    assert said.startswith("step 5 of sums is at me/sums (main, commit ") and hub.model(REPO).private
    assert relayctl("export", "sums@5", "--to", f"hf://{REPO}").stdout == said
    assert marks(hub) == [("sums", "model", 5)]
    files = hub.model(REPO).folder("main")
    assert set(files) - {".gitattributes"} == WRITTEN and b'from_pretrained("me/sums")' in files["README.md"]
    relayctl("export", "sums", "--to", f"hf://{REPO}")
    assert marks(hub) == [("sums", "result", 12), ("sums", "model", 5)]
    older = relayctl("export", "sums@10", "--to", f"hf://{REPO}", code=4).stderr
    assert "step 10 of sums is not exported: main of me/sums is at step 12 of this run by now" in older
    relayctl("export", "sums@latest", "--to", "hf://me/open", "--public")
    assert not hub.model("me/open").private


def test_a_main_that_is_another_runs_stays_as_it_is(share: Path, hub: Hub) -> None:
    relayctl("export", "sums", "--to", f"hf://{REPO}")
    before = hub.model(REPO).folder("main")
    done = relayctl("export", "elsewhere", "--to", f"hf://{REPO}")
    assert "(relay/elsewhere/model, commit " in done.stdout and "main of me/sums belongs to run sums" in done.stderr
    assert hub.model(REPO).folder("main") == before
    assert marks(hub, model_branch("elsewhere"))[0] == ("elsewhere", "result", 12)
    card = hub.model(REPO).folder(model_branch("elsewhere"))["README.md"]
    assert b'revision="relay/elsewhere/model"' in card


def test_a_hub_that_refuses_or_is_away_is_one_line(
    share: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    answer = relayctl("export", "sums", "--to", f"hf://{REPO}", code=4).stderr
    assert answer.startswith("the result of sums is not exported: ") and answer.count("\n") == 1
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    away = relayctl("export", "sums", "--to", f"hf://{REPO}", code=3).stderr
    assert away.startswith("the Hub cannot be reached; try again: ") and away.count("\n") == 1
    assert not hub.repositories


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(share: Path, tmp_path: Path) -> None:
    def assert_refused(what: str, to: str, code: int, *says: str) -> None:
        said = relayctl("export", what, "--to", to, code=code).stderr
        assert said.count("\n") == 1 and all(each in said for each in says), said

    out = tmp_path / "out"
    assert_refused("nothing", str(out), 4, "relayctl runs -a")
    assert_refused("sums@7", str(out), 4, "it has 5, 10")
    assert_refused("sums", "hf://sums", 2, "hf://owner/name")
    assert_refused("sums", "relay://", 2, "a folder, or hf://owner/name")
    assert_refused("sums", "s3://key:secret@bucket/x", 2, "without keys")
    relayctl("submit", run_file(tmp_path, "failing", FAIL="1"), "-q")
    relayctl("wait", "failing", "--timeout", "60s", code=10)
    assert_refused("failing", str(out), 1, "failing has no result", "a checkpoint is RUN@latest")
    assert not out.exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert_refused("sums", str(tmp_path / "full"), 1, "is not empty; export into a new folder")
    assert set(contents(tmp_path / "full")) == {"mine"}
    down = relayctl("--coordinator", "127.0.0.1:9", "export", "sums", "--to", str(out), code=3).stderr
    assert "127.0.0.1:9 (Connection refused)" in down


def test_a_program_of_ones_own_is_exported_whole_and_half_an_export_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    store = (tmp_path / "share").as_uri()
    relayctl("submit", run_file(tmp_path, "own"), "--set", f"checkpoint.store={store}", "-q")
    relayctl("wait", "own", "--timeout", "60s")
    relayctl("export", "own", "--to", str(tmp_path / "out"))
    assert set(contents(tmp_path / "out")) == {"result.txt", "README.md", "relay.json"}
    assert "library_name" not in contents(tmp_path / "out")["README.md"]
    [stored] = (tmp_path / "share").glob("own/output/**/result.txt")
    stored.write_text("else")
    said = relayctl("export", "own", "--to", str(tmp_path / "broken"), code=1).stderr
    assert "cannot be fetched" in said and not list((tmp_path / "broken").iterdir())
