"""When a staged folder is whole, and sealing it through every crash, on a real file system."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.checkpoints.staging import CompletionRule, StagingScanner, parse_step, resolve_inside, seal_checkpoint
from storage.manifest import MANIFEST_FILE, Manifest, ManifestError, find_damage

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    path = tmp_path / "staging"
    path.mkdir()
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "ckpt" / "step_00000100"


def stage(staging: Path, name: str = "step_100") -> Path:
    folder = staging / name
    (folder / "optimizer").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "optimizer" / "state.bin").write_bytes(b"momenta" * 1000)
    return folder


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def scanner(root: Path, clock: Callable[[], float], **rule: object) -> StagingScanner:
    return StagingScanner(root, root, CompletionRule(**rule), clock)  # type: ignore[arg-type]


# --- when it is whole ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pattern", "step"),
    [
        ("step_00000100", "step_*", 100),
        ("global_step7", "global_step*", 7),
        ("checkpoint-12", "checkpoint-*", 12),
        ("model_30.pt", "*.pt", 30),
        ("step_best", "step_*", None),
        (".step_1", "*", None),
        ("step_1.tmp", "step_*", None),
        ("other_1", "step_*", None),
    ],
)
def test_the_step_is_the_trailing_number(name: str, pattern: str, step: int | None) -> None:
    assert parse_step(name, pattern) == step


def test_renamed_folders_are_found_once_in_order(staging: Path) -> None:
    stage(staging, "step_20"), stage(staging, "step_3"), stage(staging, ".tmp-step_30"), stage(staging, "step_40.tmp")
    looking = scanner(staging, Clock())
    assert [(saved.step, saved.path) for saved in looking.scan()] == [(3, "step_3"), (20, "step_20")]
    assert looking.scan() == []


def test_what_a_line_has_named_is_not_found_again(staging: Path) -> None:
    stage(staging)
    looking = scanner(staging, Clock())
    looking.ignore(["step_100"])
    assert looking.scan() == []


def test_a_marker_makes_it_whole(staging: Path) -> None:
    folder = stage(staging)
    looking = scanner(staging, Clock(), marker="done")
    assert looking.scan() == looking.scan(final=True) == []
    (folder / "done").touch()
    assert [saved.step for saved in looking.scan()] == [100]


def test_stillness_makes_it_whole_and_a_change_starts_it_anew(staging: Path) -> None:
    folder, clock = stage(staging), Clock()
    looking = scanner(staging, clock, still_for=30.0)
    assert looking.scan() == []
    clock.now = 29.0
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert looking.scan() == []
    clock.now = 58.0
    assert looking.scan() == []
    clock.now = 59.0
    assert [saved.step for saved in looking.scan()] == [100]


def test_nothing_is_as_still_as_after_the_trainers_end(staging: Path) -> None:
    stage(staging)
    assert [saved.step for saved in scanner(staging, Clock(), still_for=30.0).scan(final=True)] == [100]


def test_checkpoints_outside_the_staging_folder_are_named_in_full(staging: Path, tmp_path: Path) -> None:
    folder = stage(tmp_path / "work" / "out", "global_step5")
    (saved,) = StagingScanner(
        tmp_path / "work" / "out", staging, CompletionRule(pattern="global_step*"), Clock()
    ).scan()
    assert staging / saved.path == folder


# --- sealing ---------------------------------------------------------------------------------


def test_a_sealed_checkpoint_has_its_manifest(staging: Path, target: Path) -> None:
    manifest = seal_checkpoint(stage(staging), target, step=100, metrics={"eval_loss": 0.5})
    assert (manifest.step, manifest.metrics) == (100, {"eval_loss": 0.5})
    assert [file.path for file in manifest.files] == ["model.safetensors", "optimizer/state.bin"]
    assert Manifest.from_bytes((target / MANIFEST_FILE).read_bytes()) == manifest
    assert find_damage(target, manifest) is None
    assert list(staging.iterdir()) == []


def test_sealing_again_is_harmless(staging: Path, target: Path) -> None:
    first = seal_checkpoint(stage(staging), target, step=100)
    assert seal_checkpoint(staging / "step_100", target, step=100) == first
    assert seal_checkpoint(stage(staging), target, step=100) == first


def test_s4_a_checkpoint_never_changes(staging: Path, target: Path) -> None:
    first = seal_checkpoint(stage(staging), target, step=100)
    (stage(staging) / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ManifestError, match="other contents"):
        seal_checkpoint(staging / "step_100", target, step=100)
    assert find_damage(target, first) is None


def test_a_single_file_becomes_a_checkpoint(staging: Path, target: Path) -> None:
    (staging / "model_100.pt").write_bytes(b"weights")
    manifest = seal_checkpoint(staging / "model_100.pt", target, step=100)
    assert [file.path for file in manifest.files] == ["model_100.pt"]
    assert (target / "model_100.pt").read_bytes() == b"weights"


@pytest.mark.parametrize("kind", ["symlink", "folder link", "fifo", "hard link", "empty", "missing", "is a link"])
def test_r7_what_is_not_taken(kind: str, staging: Path, target: Path, tmp_path: Path) -> None:
    folder = staging / "step_100"
    if kind == "empty":
        folder.mkdir()
    elif kind == "is a link":
        folder.symlink_to(stage(tmp_path, "elsewhere"))
    elif kind != "missing":
        stage(staging)
    if kind == "symlink":
        (folder / "secret").symlink_to("/etc/passwd")
    elif kind == "folder link":
        (folder / "etc").symlink_to("/etc")
    elif kind == "fifo":
        os.mkfifo(folder / "pipe")
    elif kind == "hard link":
        os.link(folder / "model.safetensors", tmp_path / "other-name")
    with pytest.raises(ManifestError):
        seal_checkpoint(folder, target, step=100)
    assert not target.exists()


@pytest.mark.parametrize("path", ["../x", "/etc", "a/../../x", "", "link/x"])
def test_r7_a_line_cannot_name_what_lies_outside(path: str, staging: Path) -> None:
    (staging / "link").symlink_to("/etc")
    with pytest.raises(ManifestError):
        resolve_inside(staging, path)
    assert resolve_inside(staging, "step_100") == staging / "step_100"


def test_a_writer_that_goes_on_is_noticed(staging: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real writer appends while the bytes go to the disk: the first fsync is the moment."""
    folder, fsync = stage(staging), os.fsync

    def and_a_writer(handle: int) -> None:
        fsync(handle)
        with (folder / "model.safetensors").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(os, "fsync", and_a_writer)
    with pytest.raises(ManifestError, match="changed while"):
        seal_checkpoint(folder, target, step=100)
    assert not target.exists()
    monkeypatch.undo()
    assert seal_checkpoint(folder, target, step=100).step == 100


# --- crashes and full disks ------------------------------------------------------------------

DIES = """
import os, sys
from pathlib import Path
from agent.checkpoints.staging import seal_checkpoint
staged, target, at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
calls = 0
def count(event, arguments):
    global calls
    if event in ("open", "os.rename", "os.mkdir", "os.remove"):
        calls += 1
        if calls == at:
            os.kill(os.getpid(), 9)
sys.addaudithook(count)
seal_checkpoint(staged, target, step=100)
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_killed_before_any_operation_it_is_whole_or_absent_and_can_be_finished(kind: str, tmp_path: Path) -> None:
    """Every open, mkdir, rename and unlink of a seal is once the last thing not done before a SIGKILL."""
    reached, at = False, 0
    while not reached:
        at += 1
        place = tmp_path / f"{at}"
        staged, target = place / "staging" / "step_100", place / "ckpt" / "step_00000100"
        stage(staged.parent)
        if kind == "file":
            (staged / "model.safetensors").rename(staged.with_suffix(".pt"))
            staged = staged.with_suffix(".pt")
        argv = [sys.executable, "-c", DIES, str(staged), str(target), str(at)]
        environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "PATH": os.environ["PATH"]}
        code = subprocess.run(argv, env=environment, check=False).returncode
        assert code in (0, -signal.SIGKILL)
        reached = code == 0
        if target.exists():
            assert find_damage(target, Manifest.from_bytes((target / MANIFEST_FILE).read_bytes())) is None
        StagingScanner(staged.parent, staged.parent, CompletionRule(), Clock())  # what a new agent does first
        manifest = seal_checkpoint(staged, target, step=100)
        assert [file.path for file in manifest.files] == sorted(
            path.relative_to(target).as_posix()
            for path in target.rglob("*")
            if path.is_file() and path.name != MANIFEST_FILE
        )
        assert find_damage(target, manifest) is None
        assert list(target.parent.iterdir()) == [target]
    assert at > 5


FULL = """
import resource, signal, sys
from pathlib import Path
from agent.checkpoints.staging import seal_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))
try:
    seal_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), step=100)
except OSError as error:
    print(type(error).__name__)
"""


def test_f15_a_full_disk_leaves_nothing_half_visible(staging: Path, target: Path) -> None:
    """No file may grow past 16 bytes, so the manifest cannot be written; with room again the seal succeeds."""
    staged = stage(staging)
    before = sorted(path.name for path in staged.iterdir())
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "PATH": os.environ["PATH"]}
    argv = [sys.executable, "-c", FULL, str(staged), str(target)]
    assert subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stdout == "OSError\n"
    assert not target.exists()
    assert sorted(path.name for path in staged.iterdir()) == before
    assert find_damage(target, seal_checkpoint(staged, target, step=100)) is None
