"""`method: evaluate`: scores of a model on tasks of lm-eval (EleutherAI's lm-evaluation-harness).

The scores are the run's metrics (`eval/<task>/<metric>`, at the step of the evaluated checkpoint). The result is
lm-eval's own, `results.json`, with every answer in `samples.jsonl`. An interrupted run starts from the beginning.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch

from runfile import RunFile
from trainers import requirements
from trainers.checkpoints import commit_folder
from trainers.environment import AttemptEnvironment
from trainers.errors import ConfigError, HostError
from trainers.events import EventLog
from trainers.launch.control import SUCCEEDED, Outcome
from trainers.models import hub
from trainers.models.hub import LocalModel, ModelSource

METHOD = "evaluate"
SAMPLES = 8  #: the number of answers that are logged as samples
_STEP = re.compile(r"@(\d+)")


@dataclass
class EvaluateConfig:
    """The options of `evaluate`, by lm-eval's own names.

    Args:
        tasks (`str` or `list[str]`):
            Names of tasks, groups and tags; patterns with * are allowed.
        num_fewshot (`int`, *optional*):
            Number of examples before each question; by default each task's own.
        limit (`int` or `float`, *optional*):
            Number of questions of each task, or a fraction of them between 0 and 1.
        batch_size (`int` or `str`, defaults to 1):
            Number of questions per batch; `auto` finds the largest that fits.
        max_batch_size (`int`, *optional*):
            Maximum batch size that `auto` may choose.
        max_length (`int`, *optional*):
            Maximum length of a question with its answer, in tokens; by default the model's own limit.
        apply_chat_template (`bool`, defaults to False):
            Whether to ask in the model's chat format.
        fewshot_as_multiturn (`bool`, defaults to True):
            Whether each example is a turn of its own in the chat format.
        system_instruction (`str`, *optional*):
            Text that precedes every question.
        gen_kwargs (`dict`, *optional*):
            Keyword arguments of generation, which override those of the tasks.
        include_path (`str`, *optional*):
            Folder with tasks of your own; list it under `files`, too.
        bootstrap_iters (`int`, defaults to 100000):
            Number of resamplings for the standard errors; with 0 there are none.
    """

    tasks: str | list[str] = field(default_factory=list)
    num_fewshot: int | None = None
    limit: int | float | None = None
    batch_size: int | str = 1
    max_batch_size: int | None = None
    max_length: int | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    system_instruction: str | None = None
    gen_kwargs: dict[str, Any] | None = None
    include_path: str | None = None
    bootstrap_iters: int = 100_000


def evaluate(run: RunFile, environment: AttemptEnvironment, processes: int, log: EventLog) -> Outcome:
    """Evaluate to the end. Raises ConfigError before anything is loaded, and HostError for what this host lacks."""
    options, manager = _prepare(run, processes)
    source = _resolve_model(run, environment.pins, log)
    model = hub.fetch_model(source)
    found = _run_lm_eval(run, options, manager, model)
    if found is None:
        return Outcome(SUCCEEDED)  # the first rank has the results of all
    at = re.search(_STEP, source.origin or "")
    step = int(at[1]) if at else 0
    log.log_metrics(step, collect_metrics(found["results"]))
    for prompt, answer in islice(_collect_answers(found["samples"]), SAMPLES):
        log.log_sample(step, "prompt", prompt, answer)
    _save_result(
        environment.output,
        found,
        {"run": environment.run_id, "method": METHOD, "model": source.name, **_origin_fact(source)},
    )
    return Outcome(SUCCEEDED)


def check(run: RunFile, environment: AttemptEnvironment, processes: int) -> str:
    """Check options and model without evaluating, and return lines for the user."""
    options, manager = _prepare(run, processes)
    name = hub.resolve_model(_require_model(run), environment.pins).name
    return f"model: {name}\ntasks: {', '.join(manager.match_tasks(_task_names(options)))}"


def collect_metrics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return lm-eval's results as metrics: `eval/<task>/<metric>`, followed by the filter's name where there is one."""
    found = {}
    for task, values in results.items():
        for name, value in values.items():
            metric, _, of = name.partition(",")
            if of and isinstance(value, int | float):
                found["/".join(["eval", task, metric, *([of] if of != "none" else [])])] = float(value)
    return found


def _collect_answers(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, str]]:
    """Yield each question and the model's answer, where the answer is text."""
    for each in chain.from_iterable(samples.values()):
        answer = each["resps"][0][0]
        if isinstance(answer, str):
            yield str(each["arguments"][0][0]), answer


def _prepare(run: RunFile, processes: int) -> tuple[EvaluateConfig, Any]:
    """Return the options, and lm-eval's index of tasks, which has all that the options name."""
    if find_spec("lm_eval") is None:
        raise HostError("method: evaluate needs the package lm-eval (pip install 'relay-training[evaluate]')")
    requirements.require_host(run, processes)
    from lm_eval.tasks import TaskManager

    options = EvaluateConfig(**run.options)
    if not options.tasks:
        raise ConfigError("options.tasks: is missing; for instance tasks: [gsm8k, hellaswag]")
    if options.include_path is not None and not Path(options.include_path).is_dir():
        raise ConfigError(
            f"options.include_path: there is no folder {options.include_path}; it must be listed in files"
        )
    manager = TaskManager(include_path=options.include_path)
    for name in _task_names(options):
        if not manager.match_tasks([name]):
            close = get_close_matches(name, manager.all_tasks, 1)
            hint = f"; did you mean {close[0]}?" if close else "; `lm-eval ls tasks` lists them"
            raise ConfigError(f"options.tasks: lm-eval has no task {name}{hint}")
    return options, manager


def _task_names(options: EvaluateConfig) -> Sequence[str]:
    """Return the names of the tasks."""
    return options.tasks.split(",") if isinstance(options.tasks, str) else options.tasks


def _require_model(run: RunFile) -> Any:
    """Return the run's model. Raises ConfigError where it has none."""
    if run.model is None:
        raise ConfigError("model: is missing")
    return run.model


def _resolve_model(run: RunFile, pins: Mapping[str, str], log: EventLog) -> ModelSource:
    """Resolve the run's model and log the pin of a commit that was resolved now."""
    source = hub.resolve_model(_require_model(run), pins)
    if source.revision and "model" not in pins:
        log.log_pin("model", source.revision)
    return source


def _run_lm_eval(run: RunFile, options: EvaluateConfig, manager: Any, model: LocalModel) -> Any:
    """Run the tasks and return lm-eval's results, or None on every rank but the first."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    tokenizer = model.adapter if model.adapter and (model.adapter / "tokenizer_config.json").is_file() else model.folder
    evaluated = HFLM(
        pretrained=str(model.folder),
        tokenizer=str(tokenizer),
        peft=str(model.adapter) if model.adapter else None,
        device="cuda" if torch.cuda.is_available() else "cpu",
        batch_size=options.batch_size,
        max_batch_size=options.max_batch_size or 64,
        max_length=options.max_length,
        **{"dtype": "auto", **run.model_init},
    )
    return simple_evaluate(
        model=evaluated,
        tasks=manager.match_tasks(_task_names(options)),
        task_manager=manager,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=options.fewshot_as_multiturn,
        system_instruction=options.system_instruction,
        gen_kwargs=options.gen_kwargs,
        bootstrap_iters=options.bootstrap_iters,
        random_seed=run.seed,
        numpy_random_seed=run.seed,
        torch_random_seed=run.seed,
        fewshot_random_seed=run.seed,
    )


def _origin_fact(source: ModelSource) -> dict[str, str]:
    """Return the checkpoint that the model comes from, where it comes from one."""
    return {"init_from": source.origin} if source.origin else {}


def _save_result(output: Path, found: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the results and the answers as the run's result."""
    draft = output.parent / f".tmp-{output.name}"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        samples = [{"task": task, **each} for task, all_ in found.get("samples", {}).items() for each in all_]
        kept = {name: value for name, value in found.items() if name != "samples"}
        (draft / "results.json").write_text(json.dumps(kept, indent=2, default=str) + "\n")
        (draft / "samples.jsonl").write_text("".join(f"{json.dumps(each, default=str)}\n" for each in samples))
        (draft / "relay.json").write_text(json.dumps(facts, indent=2) + "\n")
        commit_folder(draft, output)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise HostError(f"{output.name} cannot be written: {error.strerror}") from error
