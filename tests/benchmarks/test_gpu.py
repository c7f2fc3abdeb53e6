"""`make gpu`: its parts run on a CPU as far as it goes, so that they work on the day when there is a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from tests.gpu import has_gpu


@pytest.mark.parametrize("name", gpu.PARTS)
def test_every_part_is_a_run_file_for_gpus_and_one_for_cpus(name: str) -> None:
    run = gpu.make_run(gpu.PARTS[name], gpu.GPU)
    assert run["resources"]["gpus_per_node"] == 1
    left_out = gpu.leave_out_on_cpus(run)
    assert (left_out != []) == (name not in ("sft", "speed"))
    assert gpu.leave_out_on_cpus(run) == []


@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
def test_without_a_gpu_every_part_says_why_it_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--results", str(tmp_path / "gpu.json")]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert {each["part"]: (each["status"], each["reason"]) for each in found} == {
        name: ("skipped", "there is no GPU here") for name in gpu.PARTS
    }
    assert capsys.readouterr().out.strip() == (tmp_path / "gpu.md").read_text().strip()


def test_a_package_that_is_missing_is_named() -> None:
    part = gpu.Part("what no host has", gpu.cut_and_resume, {}, ("no_such_package",))
    assert gpu.find_obstacle(part, cpu=False, gpus=1) == "the package no_such_package is not installed"


def test_a_part_that_takes_too_long_fails_and_the_others_keep_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LIMIT", 0.0)
    done = gpu.run_part("sft", tmp_path, cpu=True, gpus=0)
    assert (done.status, done.reason) == ("failed", "takes longer than 0 s")
    results = tmp_path / "results" / "gpu.json"
    gpu.write_results(results, [gpu.Result("fsdp2", "earlier", "passed")])
    gpu.write_results(results, [done])
    kept = {each["part"]: each["status"] for each in json.loads(results.read_text())["results"]}
    assert kept == {"sft": "failed", "fsdp2": "passed"}


@pytest.mark.slow
@pytest.mark.thorough
def test_every_part_works_as_far_as_a_cpu_goes(tmp_path: Path) -> None:
    assert gpu.main(["--cpu", "--results", str(tmp_path / "gpu.json")]) == 0
    found = {each["part"]: each for each in json.loads((tmp_path / "gpu.json").read_text())["results"]}
    assert {name: each["status"] for name, each in found.items()} == dict.fromkeys(gpu.PARTS, "passed")
    assert found["qlora"]["left_out"] == ["quantization"] and found["fsdp2"]["left_out"] == ["launch"]
    cut = [each["figures"]["exact"] for each in found.values() if "exact" in each["figures"]]
    assert cut == [True] * 5
    assert found["speed"]["figures"]["Relay / bare"] > 0
