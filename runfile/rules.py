"""Rules between the sections of a run file, and what this release does not support yet."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from runfile import metric_names
from runfile.mistakes import KeyPath, Mistake, find_nearest
from runfile.models import METHODS, DataSource, RunFile, Split
from storage.address import BUCKET_SCHEMES, AddressError, parse_address

MAX_DEPTH = 24  #: of nested values
LARGEST = 2**53  #: the largest whole number up to which all are exact as doubles

#: Keys for command runs only, and keys that command runs cannot have.
_COMMAND_ONLY = ("command", "workdir", "resume_args", "adopt", "outputs", "image")
_NEVER_COMMAND = ("model", "teacher", "model_init", "lora", "quantization", "preset", "data", "rewards", "samples")
_NEVER_EVALUATED = (*(key for key in _NEVER_COMMAND if key not in ("model", "model_init")), "launch", "hub")
_TAUGHT = ("gkd", "distillation")
_STREAMED = ("sft", "cpt", "dpo", "kto", "reward")  #: methods whose trainers tokenize rows as they arrive
_REWARDED = ("grpo", "rloo", "ppo", "online_dpo")

#: Formats of rows that this release reads.
_FORMATS = (
    "auto",
    "text",
    "prompt_completion",
    "chat",
    "alpaca",
    "sharegpt",
    "preference",
    "unpaired_preference",
    "prompt",
)

#: Keys that the format has and this release does not support: path → whether a run uses it. Such a run is refused.
UNSUPPORTED: Mapping[str, Callable[[RunFile], bool]] = {
    "framework": lambda run: run.framework != "hf",
    "image": lambda run: run.image is not None,
    "adopt.metrics": lambda run: run.adopt is not None and run.adopt.metrics is not None,
    "resources.nodes": lambda run: run.resources.nodes.max > 1,
    "data.format": lambda run: run.data is not None and run.data.format not in _FORMATS,
    "lifecycle.on_oom": lambda run: run.lifecycle.on_oom != "fail",
    "lifecycle.max_runtime": lambda run: run.lifecycle.max_runtime is not None,
    "secrets": lambda run: bool(run.secrets),
    "trackers": lambda run: bool(run.trackers),
    "alerts": lambda run: bool(run.alerts),
}


def find_unstorable(data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield a mistake for each value that could not be stored, sent or digested, whatever its key.

    These are text that is not Unicode or has NUL bytes (Postgres refuses them), numbers that a double cannot carry
    (protobuf's Struct has no others), and endless nesting. They are looked for first, since the other checks recurse.
    """
    stack: list[tuple[KeyPath, Any]] = [((), data)]
    while stack:
        path, value = stack.pop()
        if problem := _storage_problem(value):
            yield Mistake(path, problem)
        elif len(path) > MAX_DEPTH:
            yield Mistake(path[:3], "is nested too deeply")
            return
        elif isinstance(value, Mapping):
            stack += [((*path, str(key)), item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            stack += [((*path, index), item) for index, item in enumerate(value)]


def _storage_problem(value: Any) -> str:
    match value:
        case Mapping() if any(not isinstance(key, str) or _text_storage_problem(key) for key in value):
            return "keys are plain text"
        case str():
            return _text_storage_problem(value)
        case int() if abs(value) > LARGEST:
            return "is too large: whole numbers go up to 2^53"
    return ""


def _text_storage_problem(text: str) -> str:
    if "\0" in text:
        return "holds a NUL character"
    return "" if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text) else "holds half a character"


def translate_mode(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run file with `method: rl`, a mode of the worker that Relay replaces, written as `grpo`."""
    return {**data, **({"method": "grpo"} if data.get("method") == "rl" else {})}


def find_conflicts(data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield a mistake for each key that the method cannot have, and each that it needs; reads the file as written."""
    method = data.get("method")
    yield from _check_hub(data)
    if method == "command":
        yield from _check_command(data)
    elif method == "evaluate":
        yield from _check_evaluation(data)
    elif method in METHODS:
        yield from _check_training(method, data)


def _is_given(data: Mapping[str, Any], key: str) -> bool:
    """Return whether a key has a value other than its default, which a resolved run writes out."""
    default = RunFile.model_fields[key].get_default(call_default_factory=True)
    value = data.get(key)
    return value is not None and (tuple(value) if isinstance(value, list) else value) != default


def _check_command(data: Mapping[str, Any]) -> Iterator[Mistake]:
    if not data.get("command"):
        yield Mistake(("command",), "is missing", "method: command runs one, for instance command: [python, train.py]")
    for key in _NEVER_COMMAND:
        if _is_given(data, key):
            yield Mistake(
                (key,), "does not go with method: command", "a command takes what it needs from files, command and env"
            )


def _check_hub(data: Mapping[str, Any]) -> Iterator[Mistake]:
    push = data["hub"].get("push", "adapter") if isinstance(data.get("hub"), Mapping) else "adapter"
    if push in ("merged", "both") and data.get("lora") is None:
        yield Mistake(("hub", "push"), "needs lora", "leave it out: without an adapter all weights are pushed")


def _check_training(method: str, data: Mapping[str, Any]) -> Iterator[Mistake]:
    for key in _COMMAND_ONLY:
        if _is_given(data, key):
            yield Mistake((key,), f"does not go with method: {method}", "it belongs to method: command")
    if "model" not in data:
        yield Mistake(
            ("model",), "is missing", "for instance model: {name_or_path: HuggingFaceTB/SmolLM2-135M-Instruct}"
        )
    if "data" not in data:
        yield Mistake(("data",), "is missing", "for instance data: {train: data/train.jsonl}")
    if data.get("rewards") and method not in _REWARDED:
        yield Mistake(("rewards",), f"does not go with method: {method}", f"it belongs to {', '.join(_REWARDED)}")
    if data.get("samples") is not None and method == "reward":
        yield Mistake(("samples",), "does not go with method: reward", "a reward model gives numbers, no text")
    if method == "ppo":
        yield from _check_ppo(data)
    yield from _check_teacher(method, data)
    yield from _check_streaming(method, data)
    yield from _check_length(data)
    yield from _check_sharding(data)
    yield from _check_keep_metric(data)
    if not data.get("rewards") and method in _REWARDED:
        yield Mistake(("rewards",), "is missing", "for instance rewards: [{call: rewards.py:score}]")
    yield from _check_functions(data)


def _check_keep_metric(data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield a mistake for a metric to keep the best checkpoints by that no trainer will report."""
    checkpoint = data.get("checkpoint")
    keep = checkpoint.get("keep") if isinstance(checkpoint, Mapping) else None
    metric = keep.get("metric") if isinstance(keep, Mapping) else None
    if not isinstance(metric, str):
        return
    path, rows = ("checkpoint", "keep", "metric"), data.get("data")
    close = find_nearest(metric, metric_names.FIRST, cutoff=0.85)  # misspelt, and not another name of the kind
    if (own := metric_names.TRAINING.get(metric)) is not None:
        yield Mistake(path, f"{metric} is reported under another name", f"write {own}")
    elif close is not None and not metric.startswith(close):
        yield Mistake(path, f"nothing reports {metric}", f"did you mean {close}?")
    elif metric.startswith("eval_") and not (isinstance(rows, Mapping) and rows.get("eval") is not None):
        yield Mistake(path, f"{metric} needs rows to evaluate on", "add data.eval, for instance {split: 0.02}")


def _check_evaluation(data: Mapping[str, Any]) -> Iterator[Mistake]:
    for key in (*_COMMAND_ONLY, *_NEVER_EVALUATED):
        if _is_given(data, key):
            yield Mistake((key,), "does not go with method: evaluate", "it takes model, model_init and options")
    if "model" not in data:
        yield Mistake(("model",), "is missing", "for instance model: {init_from: runs/x@best}, with after: runs/x")
    options = data.get("options")
    if not isinstance(options, Mapping) or not options.get("tasks"):
        yield Mistake(("options", "tasks"), "is missing", "for instance tasks: [gsm8k, hellaswag]")


def _check_ppo(data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield what Relay's own PPO trainer lacks: sharded models, and generators other than transformers."""
    launch, options = data.get("launch"), data.get("options")
    for section in ("fsdp_config", "deepspeed_config", "parallelism_config"):
        if isinstance(launch, Mapping) and section in launch:
            yield Mistake(("launch", section), "does not go with method: ppo", "it trains with DDP only; grpo takes it")
    if isinstance(options, Mapping) and "use_vllm" in options:
        yield Mistake(
            ("options", "use_vllm"), "does not go with method: ppo", "transformers generates; grpo and rloo take vLLM"
        )


def _check_streaming(method: str, data: Mapping[str, Any]) -> Iterator[Mistake]:
    section, options = data.get("data"), data.get("options")
    if not isinstance(section, Mapping) or section.get("streaming") is not True:
        return
    if method not in _STREAMED:
        hint = f"leave it out: it belongs to {', '.join(_STREAMED)}"
        yield Mistake(("data", "streaming"), f"does not go with method: {method}", hint)
    elif not isinstance(options, Mapping) or options.get("max_steps", -1) == -1:
        yield Mistake(("options", "max_steps"), "is missing", "a stream of rows does not say where it ends")


def _check_length(data: Mapping[str, Any]) -> Iterator[Mistake]:
    options = data.get("options")
    if isinstance(options, Mapping) and options.get("max_steps") == 0 and options["max_steps"] is not False:
        hint = "a run trains one step or more; leave it out to train num_train_epochs"
        yield Mistake(("options", "max_steps"), "is 0", hint)


def _check_sharding(data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield what would leave a run without weights that can be loaded, or without its optimizer after a resume."""
    launch = data.get("launch")
    sections = launch if isinstance(launch, Mapping) else {}
    fsdp, deepspeed = sections.get("fsdp_config"), sections.get("deepspeed_config")
    if isinstance(fsdp, Mapping) and str(fsdp.get("fsdp_version", 1)) == "1":
        kind = fsdp.get("fsdp_state_dict_type") or "FULL_STATE_DICT"
        if data.get("lora") is not None:
            yield Mistake(
                ("launch", "fsdp_config"), "is FSDP1, which does not resume an adapter", "fsdp_version: 2 does"
            )
        elif kind != "FULL_STATE_DICT":
            problem = f"is {kind}, with which FSDP1 does not resume the optimizer"
            yield Mistake(("launch", "fsdp_config", "fsdp_state_dict_type"), problem, "add fsdp_version: 2")
    if isinstance(deepspeed, Mapping) and deepspeed.get("zero3_save_16bit_model", True) is not True:
        problem, hint = "must be true", "without it ZeRO-3 saves no weights that can be loaded; leave it out"
        yield Mistake(("launch", "deepspeed_config", "zero3_save_16bit_model"), problem, hint)


def _check_teacher(method: str, data: Mapping[str, Any]) -> Iterator[Mistake]:
    teacher = data.get("teacher")
    if teacher and method not in _TAUGHT:
        yield Mistake(("teacher",), f"does not go with method: {method}", f"it belongs to {' and '.join(_TAUGHT)}")
    if not teacher and method in _TAUGHT:
        yield Mistake(
            ("teacher",), "is missing", "for instance teacher: {name_or_path: HuggingFaceTB/SmolLM2-1.7B-Instruct}"
        )
    if isinstance(teacher, Mapping) and teacher.get("init_from") is not None:
        yield Mistake(("teacher", "init_from"), "is not supported yet", "pull the run's result and name its folder")


def _check_functions(data: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield a mistake for each function in a file that is not uploaded with the run."""
    files, rewards = data.get("files"), data.get("rewards")
    taken = [PurePath(each) for each in files if isinstance(each, str)] if isinstance(files, list) else []
    for index, reward in enumerate(rewards if isinstance(rewards, list) else ()):
        call = reward.get("call") if isinstance(reward, Mapping) else None
        if not isinstance(call, str) or not call.partition(":")[0].endswith(".py"):
            continue
        file = PurePath(call.partition(":")[0])
        if not any(file == each or each in file.parents or file.match(str(each)) for each in taken):
            yield Mistake(("rewards", index, "call"), f"{file} is not uploaded with the run", f"add files: [{file}]")


def find_unsupported(run: RunFile) -> Iterator[Mistake]:
    """Yield a mistake for each key that this release would have to ignore."""
    for path, asked in UNSUPPORTED.items():
        if asked(run):
            yield Mistake(tuple(path.split(".")), "is not supported yet", "leave it out")
    yield from _find_unsupported_sources(run)


def _find_unsupported_sources(run: RunFile) -> Iterator[Mistake]:
    for path, source in _sources(run):
        scheme, there, rest = (source.path or "").partition("://")
        if there and scheme in BUCKET_SCHEMES:
            try:
                parse_address(f"{scheme}://{rest.partition('/')[0]}")
            except AddressError as error:
                yield Mistake((*path, "path"), str(error))
        elif there and scheme != "hf":
            hint = "name a local file, hf://owner/dataset, or s3://, gs://, az:// and a bucket"
            yield Mistake((*path, "path"), f"{scheme}:// is not supported yet", hint)


def _sources(run: RunFile) -> Iterator[tuple[KeyPath, DataSource]]:
    if run.data is None:
        return
    for index, source in enumerate(run.data.train):
        yield ("data", "train", index), source
    if run.data.eval is not None and not isinstance(run.data.eval, Split):
        for index, source in enumerate(run.data.eval):
            yield ("data", "eval", index), source
