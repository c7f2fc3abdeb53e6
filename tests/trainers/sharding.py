"""Sharded training on CPUs: what `accelerate launch` sets, and what the libraries refuse or get wrong without a GPU."""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runfile import parse_run_file
from storage.loadable import find_missing_parts, is_adapter, list_loadable_files
from tests.trainers import attempts, specs
from trainers.launch import ranks

_WRAPPED = {"fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
_FSDP1 = {
    "fsdp_version": 1,
    **_WRAPPED,
    # Both need a GPU; every rank loads the same weights without them.
    "fsdp_sync_module_states": False,
    "fsdp_cpu_ram_efficient_loading": False,
}
_FSDP2 = {"fsdp_version": 2, **_WRAPPED}
#: What shards a model, as a run file's `launch` asks for it.
FRAMEWORKS: Mapping[str, Mapping[str, Any]] = {
    "DDP": {},
    "FSDP1": {"fsdp_config": _FSDP1},
    "FSDP2": {"fsdp_config": _FSDP2},
    "FSDP2, full state": {"fsdp_config": {**_FSDP2, "fsdp_state_dict_type": "FULL_STATE_DICT"}},
    "FSDP2, recomputation": {"fsdp_config": {**_FSDP2, "fsdp_activation_checkpointing": True}},
    "ZeRO-2": {"deepspeed_config": {"zero_stage": 2}},
    "ZeRO-3": {"deepspeed_config": {"zero_stage": 3}},
}
HAS_DEEPSPEED = find_spec("deepspeed") is not None


def prepare_ranks(launch: Mapping[str, Any], processes: int, folder: Path) -> Callable[[], None]:
    """Return what each rank must call before it trains with a run file's `launch`. `folder` is for the launcher."""
    return partial(_prepare_rank, _launch_environment(launch, processes, folder)) if launch else lambda: None


def _launch_environment(launch: Mapping[str, Any], processes: int, folder: Path) -> dict[str, str]:
    """Return the variables that `accelerate launch` sets, as Relay calls it."""
    from accelerate.commands import launch as launcher
    from accelerate.utils import launch as environments

    folder.mkdir(parents=True, exist_ok=True)
    argv = ranks.build_command(processes, 1, launch, folder)
    arguments, defaults, _ = launcher._validate_launch_command(
        launcher.launch_command_parser().parse_args(argv[argv.index("trainers.launch.launcher") + 1 :])
    )
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, environ = environments.prepare_deepspeed_cmd_env(arguments)
    else:
        environ = environments.prepare_multi_gpu_env(arguments)
    return {name: value for name, value in environ.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def _prepare_rank(environ: Mapping[str, str]) -> None:
    """Have this process shard on CPUs, with what the launcher would have set."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ |= {**alone, **environ, **{name: os.environ[name] for name in alone if name in os.environ}}
    take_cpus()


def take_cpus() -> None:
    """Have the frameworks and Relay take this process's CPUs for a GPU. The launcher has set what they read."""
    from trainers import requirements

    requirements._REQUIREMENTS = tuple(
        (asked, what, packages, gpu and not what.startswith("launch."))
        for asked, what, packages, gpu in requirements._REQUIREMENTS
    )
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        _take_cpus_for_deepspeed()
    else:
        _take_cpus_for_fsdp()
        _copy_where_fsdp1_takes_memory_of_gpus()


def _take_cpus_for_deepspeed() -> None:
    """Have accelerate use DeepSpeed over gloo, which it never does on CPUs."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    from trainers import runtime

    os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu", "LOCAL_SIZE": os.environ["WORLD_SIZE"]}
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    owned_options = runtime.owned_options
    runtime.owned_options = lambda *given: owned_options(*given) | {"use_cpu": False}


def _take_cpus_for_fsdp() -> None:
    """Have accelerate shard over gloo, where it would silently train with DDP."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    create = AcceleratorState.__init__

    def create_sharded(self: Any, *args: Any, **kwargs: Any) -> None:
        shared = PartialState._shared_state
        if shared.get("distributed_type") == DistributedType.MULTI_CPU:
            shared["distributed_type"] = DistributedType.MULTI_GPU
        create(self, *args, **kwargs)

    AcceleratorState.__init__ = create_sharded


def _copy_where_fsdp1_takes_memory_of_gpus() -> None:
    """Have FSDP1 copy what it moves from a GPU to the CPU before it uses the GPU's memory again: on CPUs nothing moves,
    and it would overwrite what it has just saved.
    """
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel, _optim_utils
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    wrap, unflatten = FullyShardedDataParallel.__init__, _optim_utils._unflatten_orig_param_states

    def wrap_on_cpu(self: Any, *args: Any, **kwargs: Any) -> None:
        wrap(self, *args, **{**kwargs, "device_id": torch.device("cpu")})  # not "cpu:0", which FSDP1 takes for another

    def unflatten_copies(info: Any, states: dict[str, dict[str, Any]], name: str, *args: Any) -> None:
        for state in states.values():
            state[name] = state[name].clone()
        unflatten(info, states, name, *args)

    FullyShardedDataParallel.__init__ = wrap_on_cpu  # type: ignore[method-assign]
    _optim_utils._unflatten_orig_param_states = unflatten_copies  # type: ignore[assignment]
    FlatParamHandle.to_cpu = lambda self: nullcontext()  # type: ignore[method-assign, assignment, return-value]


#: What is trained: a framework, the number of processes, and whether an adapter.
ROWS: tuple[tuple[str, int, bool], ...] = tuple(
    (framework, processes, lora)
    for framework in FRAMEWORKS
    for processes in (1, 2)
    for lora in (False, True)
    if not (framework == "FSDP1" and lora)  # refused: it does not resume an adapter
    if processes == 2 or framework in ("FSDP2", "ZeRO-3")
)
COLUMNS = ("result", "checkpoint", "resume", "merged")
LOADS, EXACT, MERGES, NONE = "loads", "exact", "merges", "—"
_NEAR = 1e-5  #: the part by which the mean loss of the same rows may differ between one process and two


def check_everything(framework: str, processes: int, lora: bool, work: Path, folder: Path) -> dict[str, str]:
    """Train, and return what becomes of the result, of a checkpoint, of a resume and of a merge, by the table's
    columns: a word for success, or what is wrong.
    """
    run = specs.spec(work, "sft", launch=FRAMEWORKS[framework], **({"lora": specs.LORA} if lora else {}))
    run["options"] |= {"eval_steps": 2, "eval_on_start": True, "per_device_train_batch_size": 4 // processes}
    run["checkpoint"] = {"every": "2 steps"}
    train = partial(attempts.make, ranks=processes, before=prepare_ranks(run["launch"], processes, folder))
    straight = train(folder / "straight", run)
    if straight.code:
        return dict.fromkeys(COLUMNS, _complaint(straight))
    output = folder / "straight" / "output"
    return {
        "result": _begin_from(output, 6, straight, run, work, folder / "from-result"),
        "checkpoint": _begin_from(straight.checkpoint(4), 4, straight, run, work, folder / "from-checkpoint"),
        "resume": _compare(train(folder / "resumed", run, resume=straight.checkpoint(2)), straight),
        "merged": _merge(output, run, folder) if lora else NONE,
    }


def is_whole(found: Mapping[str, str], lora: bool) -> bool:
    """Return True when everything came out as it should."""
    return found == {"result": LOADS, "checkpoint": LOADS, "resume": EXACT, "merged": MERGES if lora else NONE}


def _begin_from(
    source: Path, step: int, trained: attempts.Attempt, run: Mapping[str, Any], work: Path, folder: Path
) -> str:
    """Begin another run, in one process, with what `source` holds for a library: the files that go to the Hub, into an
    export and to the coordinator's `init_from`. It must begin with the loss that the trained one had at `step`.
    """
    files = list_loadable_files(source)
    for name, path in files.items():
        (folder / "init_from" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "init_from" / name)
    if is_adapter(files):
        shutil.copytree(work / "model", folder / "init_from" / "base")
    more = {**run, "launch": {}, "model": {"init_from": "runs/x@4"}}
    begun = attempts.make(folder / "attempt", more, before=partial(os.chdir, folder))
    if begun.code:
        return _complaint(begun)
    loss, expected = begun.curve[0, "eval_loss"], trained.curve[step, "eval_loss"]
    untrained = trained.curve[0, "eval_loss"]
    if not abs(loss - expected) <= _NEAR * expected < abs(loss - untrained):
        return f"begins with a loss of {loss}, not {expected}"
    return LOADS


def _compare(resumed: attempts.Attempt, straight: attempts.Attempt) -> str:
    if resumed.code:
        return _complaint(resumed)
    return EXACT if resumed.weights() == straight.weights() else "other weights"


def _merge(adapter: Path, run: Mapping[str, Any], folder: Path) -> str:
    """Merge the result, in a process of its own: it computes, and this one must stay able to fork."""

    def merge() -> None:
        from trainers.merge import merge_adapter

        warnings.resetwarnings()  # the tests make errors of them
        merge_adapter(adapter, folder / "merged", parse_run_file(dict(run)))
        assert not find_missing_parts(folder / "merged")

    try:
        attempts.apart(merge, folder)
    except AssertionError as error:
        return str(error).strip().rpartition("\n")[2]
    return MERGES


def _complaint(attempt: attempts.Attempt) -> str:
    return attempt.outcome.message if attempt.outcome else (attempt.folder / "stderr.log").read_text()
