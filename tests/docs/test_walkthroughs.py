"""Pages whose every step is taken as a reader takes it: files saved, commands run, and what they print compared.

Nothing is downloaded here. The model that a page names is looked up where its download would lie, in the cache of the
Hugging Face Hub, and there the tests have put a tiny one; so no line of a page is changed.
"""

import ast
import asyncio
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayctl.client import RelayClient
from tests.docs.page import PAGES, blocks, commands, execute
from tests.relayctl.deployed import up

MODEL, COMMIT = "HuggingFaceTB/SmolLM2-135M-Instruct", "0" * 40


@pytest.fixture(scope="module")
def reader(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A deployment as `relayctl up` makes it, found as a reader's second terminal finds it; and an empty folder."""
    data, home = Path(tempfile.mkdtemp(prefix="relay-docs-")), tmp_path_factory.mktemp("home")
    _put_into_the_cache(tiny_model, home / "hf")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_HOME", str(home / "hf"))
        environment.setenv("HF_HUB_OFFLINE", "1")
        environment.setenv(
            "XDG_CONFIG_HOME", str(data / "config")
        )  # where `up` writes which coordinator is the default
        environment.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        environment.delenv("RELAY_COORDINATOR", raising=False)
        with up(data):
            yield home


def _put_into_the_cache(model: Path, home: Path) -> None:
    repository = home / "hub" / f"models--{MODEL.replace('/', '--')}"
    shutil.copytree(model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def walk(page: str, folder: Path) -> list[str]:
    """Take every step of a page, and return the commands that were run."""
    walked = []
    for block in blocks(PAGES / page):
        if block.file:
            (folder / block.file).write_text(block.text)
        elif block.language == "console" and block.run:
            for command in commands(block):
                if command.line == "relayctl up":
                    continue  # it is up, and what it prints was looked at
                execute(command, folder, os.environ)
                walked.append(command.line)
                if command.line.startswith("mkdir "):
                    folder /= command.line.split()[1]  # … && cd into it
    return walked


@pytest.mark.thorough
def test_first_steps(reader: Path) -> None:
    walked = walk("first-steps.md", reader)
    assert len(walked) == 9 and (reader / "library" / "result" / "adapter_model.safetensors").exists()


def test_the_trainers_contract(reader: Path, tmp_path: Path) -> None:
    walked = walk("events.md", tmp_path)
    assert len(walked) == 5 and (tmp_path / "counted" / "result.txt").exists()


async def test_the_python_client(reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script as a process; then the cells, in order, as a notebook runs them."""
    walked = await asyncio.to_thread(walk, "python.md", tmp_path)
    assert walked == ["python submit.py", "cat fetched/result.txt"]
    notebook: dict[str, object] = {}
    for block in blocks(PAGES / "python.md"):
        if block.language == "python" and not block.file:
            cell = compile(block.text, "python.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if (running := eval(cell, notebook)) is not None:
                await running
    assert notebook["curve"] == {1: 0.1, 2: 0.2, 3: 0.3}


def test_the_python_page_names_every_method() -> None:
    named = set(re.findall(r"`(\w+)`", (PAGES / "python.md").read_text().rpartition("## All methods")[2]))
    public = {name for name, value in vars(RelayClient).items() if not name.startswith("_") and callable(value)}
    assert public | {"connect"} == named - {"RELAY_SHARED_SECRET", "steps"}
