"""What is installed: from wheels alone, pinned to the last package, and nothing that no extra needs."""

import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from tomllib import loads

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = loads((ROOT / "pyproject.toml").read_text())["project"]
#: Extras that may bring packages without a wheel; whoever wants them needs a compiler.
FROM_SOURCE = {"tasks", "evaluate"}
#: Extras for hosts with a GPU, in versions that the libraries choose. They are not installed here, so not pinned.
ON_GPU_HOSTS = {"quantization", "kernels", "liger", "vllm", "deepspeed", "flash-attention"}
#: What torch's CUDA builds bring besides; their versions belong to the build, not to us.
CUDA = ("nvidia-", "cuda-", "triton")


def pins() -> list[list[str]]:
    """Of each section of constraints.txt, the packages; the last is the one of `FROM_SOURCE`."""
    sections = (ROOT / "constraints.txt").read_text().split("\n\n")
    return [[line for line in section.splitlines() if not line.startswith("#")] for section in sections]


def names(section: Iterable[str]) -> set[str]:
    return {str(canonicalize_name(Requirement(pin).name)) for pin in section}


def needed(stated: Iterable[str]) -> set[str]:
    """The packages that these requirements come to here, by what is installed."""
    todo, seen = [Requirement(line) for line in stated], set[tuple[str, str]]()
    while todo:
        wanted = todo.pop()
        for extra in ("", *wanted.extras):
            if (key := (str(canonicalize_name(wanted.name)), extra)) in seen:
                continue
            seen.add(key)
            more = map(Requirement, requires(wanted.name) or ())
            todo += [each for each in more if each.marker is None or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def stated(extras: Iterable[str]) -> Iterator[str]:
    """What the project and these extras of it ask for, without the project itself."""
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return (line for lines in lists for line in lines if not line.startswith(PROJECT["name"]))


@pytest.mark.skipif(find_spec("torch") is None, reason="the extra `trainers` is not installed")
def test_pins_are_exactly_what_is_needed() -> None:
    pinned = names(pins()[0])
    found = needed(stated(set(PROJECT["optional-dependencies"]) - FROM_SOURCE - ON_GPU_HOSTS))
    assert {name for name in found if name in pinned or not name.startswith(CUDA)} == pinned


def test_each_package_is_pinned_once_to_one_version() -> None:
    every = [pin for section in pins() for pin in section]
    assert all(len(Requirement(pin).specifier) == 1 and "==" in pin for pin in every)
    assert len(names(every)) == len(every)
    assert [sorted(section, key=str.lower) for section in pins()] == pins()


@pytest.mark.parametrize("extra", sorted(FROM_SOURCE))
def test_what_is_built_from_source_is_pinned_too(extra: str) -> None:
    for line in stated([extra]):
        assert names([line]) <= names(pin for section in pins() for pin in section)


def test_set_up_takes_wheels_alone() -> None:
    """A pin without a wheel fails where it is set up, on every machine, whether it has a compiler or not."""
    asked = ["make", "--silent", "--eval=environment: ; @env", "environment"]
    environment = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "PIP_ONLY_BINARY=:all:" in environment
    assert f"PIP_CONSTRAINT={ROOT / 'constraints.txt'}" in environment


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "deploy").glob("Dockerfile.*")))
def test_images_take_wheels_alone_and_no_extra_that_is_built(name: str) -> None:
    lines = (ROOT / "deploy" / name).read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if "pip install" in line)
    assert any("PIP_ONLY_BINARY=:all:" in line for line in lines[:first])
    assert not any("PIP_ONLY_BINARY=" in line and "$EXTRAS" not in line for line in lines[first:])
    assert not any(extra in line for line in lines if "pip install" in line for extra in FROM_SOURCE)


@pytest.mark.skipif(find_spec("trl") is None, reason="the extra `trainers` is not installed")
def test_every_package_that_a_run_may_require_has_an_extra() -> None:
    """The host that lacks it names the extra, and the extra brings it."""
    from trainers.requirements import EXTRAS

    assert set(EXTRAS.values()) == ON_GPU_HOSTS
    for package, extra in EXTRAS.items():
        assert package.replace("_", "-") in names(_libraries_extra(PROJECT["optional-dependencies"][extra]))


def _libraries_extra(lines: Iterable[str]) -> Iterator[str]:
    """What these requirements come to where they name an extra of a library, else themselves."""
    for line in map(Requirement, lines):
        extras = [Requirement(each) for extra in line.extras for each in _with_extra(line.name, extra)]
        yield from (str(each.name) for each in extras) if extras else (line.name,)


def _with_extra(name: str, extra: str) -> Iterator[str]:
    for each in map(Requirement, requires(name) or ()):
        marker = each.marker
        if marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            yield str(each)
