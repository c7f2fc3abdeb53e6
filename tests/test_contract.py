"""The contract: its generated code is fresh, its style holds, and what is released is never broken."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).parents[1]
BUF = Path(sys.executable).parent / "buf"
BASELINE = ROOT / "proto" / "baseline.binpb"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contract as it is now, for buf to read."""
    path = tmp_path_factory.mktemp("contract") / "contract.binpb"
    assert generate("--image", str(path)).returncode == 0
    return path


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "proto" / "generate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def buf(command: str, image: Path, *arguments: str) -> list[str]:
    """What buf finds fault with. Its exit status must agree that there is something, or nothing."""
    line = [str(BUF), command, str(image), "--config", str(ROOT / "buf.yaml"), *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    findings = (done.stdout + done.stderr).splitlines()
    assert (done.returncode != 0) == bool(findings)
    return findings


def ours(files: FileDescriptorSet) -> Iterator[FileDescriptorProto]:
    return (file for file in files.file if file.package == "relay.v1")


def test_generated_code_is_what_the_proto_files_say() -> None:
    done = generate("--check")
    assert done.returncode == 0, done.stderr


def test_style_holds_and_every_rpc_message_and_enum_has_its_sentence(image: Path) -> None:
    assert buf("lint", image) == []


def test_a_missing_sentence_would_be_found(image: Path, tmp_path: Path) -> None:
    files = FileDescriptorSet.FromString(image.read_bytes())
    for file in ours(files):
        for location in file.source_code_info.location:
            location.ClearField("leading_comments")
    (silent := tmp_path / "silent.binpb").write_bytes(files.SerializeToString())
    findings = "\n".join(buf("lint", silent))
    for kind in ("RPC", "Message", "Enum", "Service"):
        assert f'{kind} "' in findings


def test_nothing_that_was_released_is_broken(image: Path) -> None:
    assert buf("breaking", image, "--against", str(BASELINE)) == []


def test_a_broken_field_would_be_found(image: Path, tmp_path: Path) -> None:
    files = FileDescriptorSet.FromString(image.read_bytes())
    message = next(message for file in ours(files) for message in file.message_type if message.field)
    message.field[0].name += "_renamed"
    (broken := tmp_path / "broken.binpb").write_bytes(files.SerializeToString())
    assert any(message.name in finding for finding in buf("breaking", broken, "--against", str(image)))
