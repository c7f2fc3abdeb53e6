"""The arguments, folder and environment that a trainer is started with. Pure.

The environment is an allow-list: what every program needs, what CUDA and the Hugging Face libraries read, Relay's own
contract, and the run file's `env`. No other variable of the agent's is passed on, least of all its secret (R6).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.folder import AttemptFolder
from agent.wire import Assignment
from runfile import RunFile

_ALLOWED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TERM|LD_LIBRARY_PATH|PYTHONPATH|PYTHONUNBUFFERED"
    r"|CUDA_\w+|NVIDIA_(?:VISIBLE_DEVICES|DRIVER_CAPABILITIES|REQUIRE_\w+|DISABLE_REQUIRE|TF32_OVERRIDE)|NCCL_\w+|GLOO_\w+|UCX_\w+|FI_\w+|OMP_\w+|MKL_\w+|TORCH_\w+|PYTORCH_\w+|TRITON_\w+"
    r"|HF_HOME|HF_HUB_\w+|HF_DATASETS_\w+|HF_ENDPOINT|TRANSFORMERS_\w+|TOKENIZERS_PARALLELISM|XDG_CACHE_HOME"
    r"|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|(?:HTTP|HTTPS|NO|ALL)_PROXY|(?:http|https|no|all)_proxy"
)


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """The description of one process to start."""

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]


def build_launch(
    assignment: Assignment,
    run: RunFile,
    folder: AttemptFolder,
    *,
    resume: Path | None,
    python: str,
    gpus: bool,
    inherited: Mapping[str, str],
) -> LaunchSpec:
    """Return how to start the trainer. `resume` is a verified checkpoint, `inherited` the agent's environment."""
    cwd = folder.work / run.workdir
    return LaunchSpec(
        argv=_build_argv(run, folder, resume, python),
        cwd=cwd,
        env=filter_environment(inherited)
        | run.env
        | _contract_variables(assignment, run, folder, resume)
        | _gpu_variables(assignment, gpus),
    )


def filter_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of the agent's environment that a trainer may see."""
    return {name: value for name, value in environment.items() if _ALLOWED.fullmatch(name)}


def _build_argv(run: RunFile, folder: AttemptFolder, resume: Path | None, python: str) -> tuple[str, ...]:
    if run.command is None:
        return (python, "-m", "trainers", str(folder.run_file))
    more = run.resume_args if resume is not None else ()
    return (*run.command, *(argument.replace("{checkpoint}", str(resume)) for argument in more))


def _contract_variables(
    assignment: Assignment, run: RunFile, folder: AttemptFolder, resume: Path | None
) -> dict[str, str]:
    every = run.checkpoint.every.seconds
    environment = {
        "RELAY_RUN_ID": assignment.run_id,
        "RELAY_ATTEMPT": str(assignment.attempt),
        "RELAY_OUTPUT_DIR": str(folder.output),
        "RELAY_CKPT_STAGING_ROOT": str(folder.staging),
        "RELAY_EVENTS": str(folder.events),
        "RELAY_RUN_FILE": str(folder.run_file),
        "RELAY_PINS": json.dumps(dict(assignment.message.pins), sort_keys=True),
        "RELAY_NODE_RANK": str(assignment.node),
        "RELAY_NUM_NODES": str(max(1, len(assignment.message.places))),
        # At least two: the newest may be being hashed here when the trainer has saved the next.
        "RELAY_CKPT_KEEP_LAST_N": str(max(run.checkpoint.keep.last, 2)),
    }
    if every is not None:
        environment["RELAY_CKPT_INTERVAL"] = f"{every:g}"
    if resume is not None:
        environment["RELAY_RESUME_FROM"] = str(resume)
    return environment


def _gpu_variables(assignment: Assignment, gpus: bool) -> dict[str, str]:
    """Return the variables that show a trainer the GPUs of its slots and no others; none on a host without GPUs."""
    slots = assignment.slots if gpus else ()
    return {"RELAY_GPUS": str(len(slots)), "CUDA_VISIBLE_DEVICES": ",".join(map(str, slots))}
