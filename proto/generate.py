"""Generates the Python code of the contract, and the image that `buf` reads.

python proto/generate.py                 write the code beside the .proto files
python proto/generate.py --check         exit 1, naming the files, when that code is stale
python proto/generate.py --image FILE    write the descriptors, comments included, to FILE
"""

import argparse
import filecmp
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.rpc import status_pb2

ROOT = Path(__file__).parent
LIBRARIES = Path(status_pb2.__file__).parents[2]  # googleapis-common-protos brings google/rpc/*.proto
SCRIPTS = Path(sys.executable).parent  # where the environment keeps mypy-protobuf's plugins


def generate(to: Path) -> None:
    """Writes `relay/v1/*_pb2*.py` and their stubs below the folder `to`."""
    plugins = [f"--plugin={name}={SCRIPTS / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    code = (f"--python_out={to}", f"--grpc_python_out={to}")
    stubs = (f"--mypy_out=quiet:{to}", f"--mypy_grpc_out=quiet,only_async:{to}")
    protoc(*plugins, *code, *stubs)


def image(to: Path) -> None:
    """Writes the contract and all it imports as one FileDescriptorSet."""
    to.parent.mkdir(parents=True, exist_ok=True)
    protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={to}")


def stale() -> list[str]:
    """Names the generated files that differ from what the .proto files say, are missing, or belong to none of them."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, here = dict(generated(Path(folder))), dict(generated(ROOT))
        return sorted(
            name
            for name in fresh.keys() | here.keys()
            if name not in fresh or name not in here or not filecmp.cmp(fresh[name], here[name], shallow=False)
        )


def generated(root: Path) -> Iterator[tuple[str, Path]]:
    return ((str(path.relative_to(root)), path) for path in root.glob("relay/v1/*_pb2*.py*"))


def protoc(*arguments: str) -> None:
    sources = sorted(str(path) for path in ROOT.glob("relay/v1/*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", f"-I{LIBRARIES}", *arguments, *sources]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true")
    action.add_argument("--image", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    if chosen.image:
        image(chosen.image)
    elif not chosen.check:
        generate(ROOT)
    elif names := stale():
        sys.exit(f"stale: {', '.join(names)}; run `make proto` and commit what it writes")


if __name__ == "__main__":
    main()
