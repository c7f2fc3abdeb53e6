"""Detection on this very host, and control-group limits read from folders like the kernel's."""

import os
import sys
from pathlib import Path

import pytest

from agent.capability import Meter, commit_of, cpu_limit, detect, disk_free, memory_limit, memory_used, versions_of


def write_files(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_at_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


def test_this_host_is_described(tmp_path: Path) -> None:
    found = detect(tmp_path / "not" / "yet", sys.executable)
    assert found.hostname and found.platform.startswith("linux/")
    assert 1 <= found.cpus <= (os.cpu_count() or 1)
    assert found.memory > 0 and found.disk_free > 0
    assert found.versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert all(gpu.uuid and gpu.memory > 0 for gpu in found.gpus)


def test_torch_is_not_imported_to_learn_its_version() -> None:
    assert "transformers" in versions_of(sys.executable)


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/true", "/bin/false"])
def test_an_interpreter_that_starts_no_trainer_is_refused_by_name(python: str) -> None:
    with pytest.raises(ValueError, match=f"--python {python}: "):
        versions_of(python)


def test_a_cpu_quota_counts(tmp_path: Path) -> None:
    allowed = len(os.sched_getaffinity(0))
    assert cpu_limit(write_files(tmp_path / "a", cpu_at_max="100000 100000")) == 1
    assert cpu_limit(write_files(tmp_path / "b", cpu_at_max="max 100000")) == allowed
    assert cpu_limit(write_files(tmp_path / "c", cpu_at_max="50000 100000")) == 1
    old = write_files(tmp_path / "d", cpu__cpu_at_cfs_quota_us="100000", cpu__cpu_at_cfs_period_us="100000")
    assert cpu_limit(old) == 1
    assert cpu_limit(write_files(tmp_path / "e", cpu__cpu_at_cfs_quota_us="-1")) == allowed


def test_a_memory_limit_counts(tmp_path: Path) -> None:
    installed = memory_limit(tmp_path)
    assert memory_limit(write_files(tmp_path / "a", memory_at_max="1000000")) == 1000000
    assert memory_limit(write_files(tmp_path / "b", memory_at_max="max")) == installed
    unlimited = write_files(tmp_path / "c", memory__memory_at_limit_in_bytes="9223372036854771712")
    assert memory_limit(unlimited) == installed
    assert memory_used(write_files(tmp_path / "d", memory_at_current="4096")) == 4096
    assert 0 < memory_used(tmp_path) < installed * 2


def test_load_is_read(tmp_path: Path) -> None:
    reading = Meter(tmp_path).read()
    assert 0.0 <= reading.cpu <= 1.0
    assert reading.memory_used > 0 and reading.disk_free > 0 and disk_free(tmp_path) > 0


def test_no_checkout_has_no_commit(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == ""
