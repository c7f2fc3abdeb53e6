"""Relay's PPO: its arithmetic is checked by hand, and its training against a loop that shares nothing with it."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runfile import parse_run_file
from runfile.mistakes import RunFileErrors
from tests.trainers import attempts
from tests.trainers.deferred import deferred_imports
from tests.trainers.specs import LORA, spec
from trainers.launch.control import CONTROL_VARIABLE

with deferred_imports():
    import torch

    from trainers.ppo import estimates, losses, policy

E = math.e


def test_a_completion_ends_with_its_first_end() -> None:
    ids = torch.tensor([[5, 2, 7, 2], [5, 6, 7, 8], [2, 2, 2, 2], [5, 6, 3, 9]])
    t, f = True, False
    wanted = [[t, t, f, f], [t, t, t, t], [t, f, f, f], [t, t, t, f]]
    assert estimates.completion_mask(ids, torch.tensor([2, 3])).tolist() == wanted


def test_the_score_comes_with_the_last_token_and_straying_costs_at_each() -> None:
    kl = torch.tensor([[0.5, 1.0, math.inf], [2.0, -1.0, 4.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = estimates.spread_rewards(torch.tensor([3.0, -1.0]), kl, mask, 0.1)
    # 0.1 times what was strayed, taken off; 3 at the second token of the first row, -1 at the third of the second
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 2.9, 0.0], [-0.2, 0.1, -1.4]]))


def test_advantages_are_the_discounted_sums_of_errors() -> None:
    rewards = torch.tensor([[1.0, 0.0, 2.0], [1.0, 4.0, 9.0]])
    values = torch.tensor([[0.5, 1.0, 1.5], [1.0, 2.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    found, returns = estimates.estimate_advantages(rewards, values, mask, gamma=0.9, lam=0.5)
    # row 1, from its end: 2 - 1.5 = 0.5; 0 + 0.9 * 1.5 - 1 = 0.35, + 0.45 * 0.5 = 0.575;
    #        1 + 0.9 * 1 - 0.5 = 1.4, + 0.45 * 0.575 = 1.65875
    # row 2 ends after two: 4 - 2 = 2; 1 + 0.9 * 2 - 1 = 1.8, + 0.45 * 2 = 2.7; what is behind the end does not count
    torch.testing.assert_close(found, torch.tensor([[1.65875, 0.575, 0.5], [2.7, 2.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[2.15875, 1.575, 2.0], [3.7, 4.0, 0.0]]))


def test_with_lambda_1_returns_are_sums_of_rewards() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[7.0, -3.0, 0.25]])
    _, returns = estimates.estimate_advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, torch.tensor([[7.0, 6.0, 4.0]]))


def test_whitening_is_over_the_mask_and_over_all_processes() -> None:
    values = torch.tensor([[1.0, 2.0, math.inf], [3.0, 6.0, math.nan]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    ours = estimates.sum_moments(values, mask)
    assert ours.tolist() == [4.0, 12.0, 50.0]  # 1 + 4 + 9 + 36
    mean, variance = estimates.mean_and_variance(ours)
    assert float(mean) == 3.0 and float(variance) == pytest.approx(14 / 3)  # (4 + 1 + 0 + 9) / 3
    scale = (14 / 3) ** -0.5
    wanted = torch.tensor([[-2 * scale, -scale, 0.0], [0.0, 3 * scale, 0.0]])
    torch.testing.assert_close(estimates.whiten(values, mask, ours), wanted)
    kept = torch.where(mask, wanted + 3.0, 0.0)
    torch.testing.assert_close(estimates.whiten(values, mask, ours, centered=False), kept)
    halves = sum(estimates.sum_moments(values[each : each + 1], mask[each : each + 1]) for each in range(2))
    torch.testing.assert_close(halves, ours)


def test_the_policy_is_pushed_until_its_ratio_leaves_the_range() -> None:
    new = torch.log(torch.tensor([[1.5, 1.5, 0.5, 0.5, 1.1]]))
    pushed, clipped = losses.clipped_policy_loss(
        new, torch.zeros(1, 5), torch.tensor([[2.0, -2.0, 2.0, -2.0, 2.0]]), 0.2
    )
    # good and too likely already: 1.2 * 2; bad and likely: pushed on; good and unlikely: pushed on; bad and too
    # unlikely already: 0.8 * 2; within the range: as it is
    torch.testing.assert_close(pushed, torch.tensor([[-2.4, 3.0, -1.0, 1.6, -2.2]]))
    assert clipped.tolist() == [[True, False, False, True, False]]


def test_values_are_fitted_no_further_than_the_range() -> None:
    new, old = torch.tensor([[1.0, 1.0, 0.1]]), torch.zeros(1, 3)
    fitted, clipped = losses.clipped_value_loss(new, old, torch.tensor([[2.0, 0.0, 1.0]]), 0.2)
    # held at 0.2: 1.8**2 against 1; held at 0.2: 0.04 against 1; not held
    torch.testing.assert_close(fitted, torch.tensor([[1.62, 0.5, 0.405]]))
    assert clipped.tolist() == [[True, False, False]]


def test_entropy_and_divergence() -> None:
    torch.testing.assert_close(losses.entropy(torch.tensor([[0.0, 0.0, 0.0, 0.0]])), torch.tensor([math.log(4)]))
    torch.testing.assert_close(
        losses.entropy(torch.log(torch.tensor([[0.75, 0.25]]))),
        torch.tensor([-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]),
    )
    policy, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0])
    torch.testing.assert_close(losses.estimate_divergence(policy, reference, "k1"), torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(losses.estimate_divergence(policy, reference, "k3"), torch.tensor([1 / E, E - 2]))


def test_values_are_computed_in_float32_under_autocast_too() -> None:
    model, states = torch.nn.Module(), torch.linspace(-1, 1, 64).view(1, 2, 32)
    model.add_module(policy.HEAD, torch.nn.Linear(32, 1))
    values = policy.compute_values(model, states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(policy.compute_values(model, states), values)
        assert policy.compute_values(model, states.bfloat16()).dtype == torch.float32


def test_the_coefficient_is_steered_by_a_fifth_at_most() -> None:
    control = estimates.KLController(0.1, target=6.0, horizon=100)
    control.update(60.0, 10)  # ten times too far: 1 + 0.2 * 10 / 100
    assert control.coefficient == pytest.approx(0.102)
    control.update(5.4, 50)  # a tenth too near: 1 - 0.1 * 50 / 100
    assert control.coefficient == pytest.approx(0.102 * 0.95)
    control.update(0.0, 100)
    assert control.coefficient == pytest.approx(0.102 * 0.95 * 0.8)
    fixed = estimates.KLController(0.1)
    fixed.update(60.0, 10)
    assert fixed.coefficient == 0.1


OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "max_completion_length": 5,
    "max_steps": 10,
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "kl_coef": 0.2,
    "kl_target": 0.3,
    "kl_horizon": 60,
    "entropy_coef": 0.01,
    "missing_eos_penalty": 0.5,
    "gamma": 0.98,
    "temperature": 0.9,
    "whiten_rewards": True,
    "logging_steps": 1,
}


def short(completions: Sequence[str], **_: Any) -> list[float | None]:
    return [-len(completion) / 10 for completion in completions]


def digits(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float | None]:
    return [float(sum(letter in right for letter in said)) for said, right in zip(completions, answer, strict=True)]


def train_recorded(work: Path, folder: Path) -> int:
    """Train ten steps with Relay's trainer; leave the weights, the log, and the sampled tokens and orders of each
    rollout.
    """
    from datasets import Dataset

    from runfile import ModelSection
    from trainers.models.hub import fetch_model, resolve_model
    from trainers.ppo.config import PPOConfig
    from trainers.ppo.rollout import RolloutBatch, RolloutBuffer
    from trainers.ppo.trainer import PPOTrainer

    torch.set_num_threads(1)
    drawn: list[dict[str, Any]] = []

    class Recorded(PPOTrainer):
        def _roll_out(self, rows: Any, mode: str) -> RolloutBatch:
            batch = super()._roll_out(rows, mode)
            drawn.append({"rows": rows, "completions": batch.ids[:, -batch.completion :].tolist()})
            return batch

        def _shuffle_rollout(self, batch: RolloutBatch) -> RolloutBuffer:
            buffer = super()._shuffle_rollout(batch)
            drawn[-1]["orders"] = buffer.orders.tolist()
            return buffer

    rows = [json.loads(line) for line in (work / "prompt.jsonl").read_text().splitlines()]
    own = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    args = PPOConfig(output_dir=str(folder), seed=42, dataloader_pin_memory=False, **own, **OPTIONS)  # type: ignore[arg-type]
    trainer = Recorded(
        model=str(work / "model"), args=args, train_dataset=Dataset.from_list(rows), reward_funcs=[short, digits]
    )
    trainer.base_model = fetch_model(resolve_model(ModelSection(name_or_path=str(work / "model")), {}))
    trainer.train()
    trainer.save_model(str(folder / "output"))
    (folder / "drawn.json").write_text(json.dumps(drawn))
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
    return 0


class Plain:
    """PPO in its plainest form, one row at a time: no padding, no batches, no Trainer, no code of Relay's."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        load: Callable[..., Any] = partial(AutoModelForCausalLM.from_pretrained, folder, dtype=torch.float32)
        self.policy, self.reference = load().eval(), load().eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.weight = torch.zeros(1, self.policy.config.hidden_size, requires_grad=True)
        self.bias = torch.zeros(1, requires_grad=True)
        self.kl_coef = float(OPTIONS["kl_coef"])

    def look(self, model: Any, prompt: list[int], said: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log-probability, value and entropy of each token."""
        out = model(torch.tensor([prompt + said]), output_hidden_states=True)
        at = slice(len(prompt) - 1, len(prompt) + len(said) - 1)
        logs = torch.log_softmax(out.logits[0, at] / OPTIONS["temperature"], dim=-1)
        values = out.hidden_states[-1][0, at] @ self.weight[0] + self.bias
        return logs[range(len(said)), said], values, -(logs.exp() * logs).sum(-1)

    def rollout(self, drawn: dict[str, Any]) -> list[dict[str, Any]]:
        """Return all that is known of each row once it has been scored."""
        end, made = self.tokenizer.eos_token_id, []
        for row, tokens in zip(drawn["rows"], drawn["completions"], strict=True):
            said = tokens[: tokens.index(end) + 1] if end in tokens else tokens
            text = self.tokenizer.decode(said, skip_special_tokens=True)
            score = sum(each or 0.0 for each in (*short([text]), *digits([text], [row["answer"]])))
            score -= 0.0 if end in said else 0.5
            prompt = self.tokenizer(row["prompt"])["input_ids"]
            with torch.no_grad():
                logps, values, _ = self.look(self.policy, prompt, said)
                strayed = logps - self.look(self.reference, prompt, said)[0]
            rewards = -self.kl_coef * strayed
            rewards[-1] += score
            made.append(
                {"prompt": prompt, "said": said, "logps": logps, "values": values, "rewards": rewards, "kl": strayed}
            )
        self.judge(made)
        return made

    def judge(self, made: list[dict[str, Any]]) -> None:
        given = torch.cat([each["rewards"] for each in made])
        for each in made:
            rewards, values, after = (each["rewards"] - given.mean()) / given.std() + given.mean(), each["values"], 0.0
            each["advantages"] = torch.zeros_like(rewards)
            for at in reversed(range(len(rewards))):
                following = values[at + 1] if at + 1 < len(rewards) else 0.0
                error = rewards[at] + OPTIONS["gamma"] * following - values[at]
                after = error + OPTIONS["gamma"] * 0.95 * after
                each["advantages"][at] = after
            each["returns"] = each["advantages"] + values
        all_of = torch.cat([each["advantages"] for each in made])
        for each in made:
            each["advantages"] = (each["advantages"] - all_of.mean()) / all_of.std()
        strayed = sum(float(each["kl"].sum()) for each in made) / len(made)
        error = min(max(strayed / OPTIONS["kl_target"] - 1, -0.2), 0.2)
        self.kl_coef *= 1 + error * len(made) / OPTIONS["kl_horizon"]

    def loss(self, minibatch: list[dict[str, Any]]) -> torch.Tensor:
        total, tokens = torch.zeros(()), 0
        for each in minibatch:
            logps, values, entropy = self.look(self.policy, each["prompt"], each["said"])
            ratio = (logps - each["logps"]).exp()
            gain = torch.min(ratio * each["advantages"], ratio.clamp(0.8, 1.2) * each["advantages"])
            held = each["values"] + (values - each["values"]).clamp(-0.2, 0.2)
            miss = torch.max((values - each["returns"]) ** 2, (held - each["returns"]) ** 2)
            total = total + (-gain + 0.1 * 0.5 * miss - 0.01 * entropy).sum()
            tokens += len(each["said"])
        return total / tokens

    def train(self, drawn: list[dict[str, Any]]) -> list[float]:
        """Return the loss of each step."""
        named = dict(self.policy.named_parameters())
        decays = [each for name, each in named.items() if "norm" not in name and "bias" not in name]
        others = [each for name, each in named.items() if "norm" in name or "bias" in name]
        optimizer = torch.optim.AdamW(
            [
                {"params": [*decays, self.weight], "weight_decay": 0.1},
                {"params": [*others, self.bias], "weight_decay": 0.0},
            ],
            lr=OPTIONS["learning_rate"],
        )
        found: list[float] = []
        for rollout in drawn:
            made = self.rollout(rollout)
            for order in rollout["orders"]:
                for minibatch in (order[:6], order[6:]):
                    if len(found) == OPTIONS["max_steps"]:
                        return found
                    for group in optimizer.param_groups:
                        group["lr"] = OPTIONS["learning_rate"] * (1 - len(found) / OPTIONS["max_steps"])
                    loss = self.loss([made[index] for index in minibatch])
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    torch.nn.utils.clip_grad_norm_([*named.values(), self.weight, self.bias], 1.0)
                    optimizer.step()
                    found.append(float(loss.detach()))
        raise AssertionError("too few rollouts")


def train_plainly(work: Path, folder: Path) -> int:
    """Train in a process of its own: a process that has computed gradients cannot be forked any more."""
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    plain = Plain(work / "model")
    lost = plain.train(json.loads((folder / "drawn.json").read_text()))
    (folder / "lost.json").write_text(json.dumps(lost))
    weights = {name: parameter.detach() for name, parameter in plain.policy.named_parameters()}
    save_file({**weights, "value.weight": plain.weight.detach(), "value.bias": plain.bias.detach()}, folder / "plain")
    return 0


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_ten_steps_are_those_of_a_plain_loop(work: Path, tmp_path: Path) -> None:
    """Weights and losses agree to 1e-5: single precision, in another order."""
    from safetensors.torch import load_file

    for train in (train_recorded, train_plainly):
        pid = attempts.fork(partial(train, work, tmp_path), tmp_path / "stderr.log")
        assert attempts.ended(pid) == 0, (tmp_path / "stderr.log").read_text()
    drawn = json.loads((tmp_path / "drawn.json").read_text())
    assert len(drawn) == 3 and {len(each["completions"]) for each in drawn} == {12}
    log = [entry for entry in json.loads((tmp_path / "log.json").read_text()) if "loss" in entry]
    assert log[8]["kl_coef"] != log[0]["kl_coef"]  # of the first rollout and the third
    lost = json.loads((tmp_path / "lost.json").read_text())
    torch.testing.assert_close(torch.tensor([entry["loss"] for entry in log]), torch.tensor(lost), atol=1e-5, rtol=1e-4)
    ours, plain = load_file(tmp_path / "output" / "model.safetensors"), load_file(tmp_path / "plain")
    head = load_file(tmp_path / "output" / "value_head.safetensors")
    ours |= {f"value.{name}": value for name, value in head.items()}
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
@pytest.mark.parametrize("lora", [{}, {"lora": LORA}])
def test_a_cut_anywhere_in_a_rollout_leaves_no_trace(work: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    run = spec(work, "ppo", **lora) | {"checkpoint": {"every": "1 steps", "keep": {"last": 10}}}
    run["options"] |= {"gradient_accumulation_steps": 2, "max_steps": 6}
    whole = attempts.make(tmp_path / "whole", run)
    assert whole.code == 0 and whole.steps_saved == [1, 2, 3, 4, 5, 6], (whole.folder / "stderr.log").read_text()
    assert abs(whole.curve[2, "kl"]) < 1e-6 < abs(whole.curve[6, "kl"])  # the reference stays where it was
    for step in (1, 2, 4, 5):  # a rollout serves four steps
        rest = attempts.make(tmp_path / f"from-{step}", run, resume=whole.checkpoint(step))
        assert (rest.code, rest.weights()) == (0, whole.weights())
        after = {key: value for key, value in whole.curve.items() if key[0] > step}
        evaluated = {  # step 4 is, after it was saved, and so again by who resumes from it
            (at, name): value
            for (at, name), value in whole.curve.items()
            if at == step == 4 and (name == "epoch" or name.startswith("eval_"))
        }
        assert rest.curve == after | evaluated


def record_learnt() -> None:
    """Have this process write down which rows of each rollout are learnt from."""
    from trainers.ppo.trainer import PPOTrainer

    roll_out = PPOTrainer._roll_out

    def roll_out_and_write(self: Any, *args: Any) -> Any:
        batch = roll_out(self, *args)
        with Path(os.environ[CONTROL_VARIABLE], "learnt").open("a") as file:
            file.write(f"{batch.mask.any(dim=1).int().tolist()}\n")
        return batch

    PPOTrainer._roll_out = roll_out_and_write  # type: ignore[method-assign, assignment]


@pytest.mark.rotating(1)
@pytest.mark.parametrize("whiten", [False, True])
def test_a_completion_without_a_score_is_not_learnt_from(work: Path, tmp_path: Path, whiten: bool) -> None:
    """As TRL does it, its score is not 0 either: 1, 2, 4, 5 and 7 have the mean 3.8."""
    (tmp_path / "rewards.py").write_text(
        "def third(completions, **_):\n"
        "    return [None if at % 3 == 0 else float(at) for at in range(len(completions))]\n"
        "def never(completions, **_):\n"
        "    return [None] * len(completions)\n"
    )
    run = spec(work, "ppo", options={"max_steps": 2, "logging_steps": 1, "whiten_rewards": whiten, "kl_coef": 0.0})
    some = run | {"rewards": [{"call": f"{tmp_path}/rewards.py:third"}], "files": [f"{tmp_path}/rewards.py"]}
    some["options"] = {name: value for name, value in some["options"].items() if not name.startswith("kl_t")}
    attempt = attempts.make(tmp_path / "some", some, before=record_learnt)
    assert attempt.code == 0, (attempt.folder / "stderr.log").read_text()
    assert attempt.curve[1, "reward"] == pytest.approx(3.8)
    assert attempt.curve[1, "completions/unscored_ratio"] == pytest.approx(3 / 8)
    assert set((attempt.folder / "learnt").read_text().splitlines()) == {"[0, 1, 1, 0, 1, 1, 0, 1]"}
    assert all(math.isfinite(value) for value in attempt.curve.values() if isinstance(value, float))
    assert attempt.messages("warning") == []

    none = some | {"rewards": [{"call": f"{tmp_path}/rewards.py:never"}]}
    attempt = attempts.make(tmp_path / "none", none)
    assert attempt.code == 0, (attempt.folder / "stderr.log").read_text()
    assert (1, "reward") not in attempt.curve
    assert [attempt.curve[step, name] for step in (1, 2) for name in ("train_loss", "grad_norm")] == [0.0] * 4
    assert [said for said in attempt.messages("warning") if "every reward was None" in said]


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_two_processes_train_as_one(work: Path, tmp_path: Path) -> None:
    """The likeliest completions, so that nothing is sampled; sums in another order agree to 1e-5."""
    from safetensors.torch import load_file

    run = spec(work, "ppo")
    run["options"] |= {"top_k": 1, "num_mini_batches": 1, "eval_steps": 6, "logging_steps": 1}
    one = attempts.make(tmp_path / "one", run | {"options": {**run["options"], "per_device_train_batch_size": 8}})
    two = attempts.make(tmp_path / "two", run, ranks=2)
    assert (one.code, two.code) == (0, 0), (two.folder / "stderr.log").read_text()
    first, second = (load_file(each.folder / "output" / "model.safetensors") for each in (one, two))
    began = load_file(work / "model" / "model.safetensors")
    assert abs(one.curve[1, "kl"]) < 1e-6 and one.curve[1, "approx_kl"] < 1e-12  # nothing has moved yet
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-4)
    assert any((began[name] - value).abs().max() > 1e-3 for name, value in first.items() if name in began)
    for name in ("reward", "kl", "kl_coef", "explained_variance", "completions/mean_length"):  # of the third rollout
        assert two.curve[5, name] == pytest.approx(one.curve[5, name], abs=1e-5), name
    for name in ("train_loss", "policy_loss", "value_loss", "entropy", "approx_kl", "grad_norm"):
        assert two.curve[6, name] == pytest.approx(one.curve[6, name], abs=1e-5, rel=1e-4), name


def compare_adapters(work: Path) -> int:
    """Compare a policy that has moved with its reference: the bare model, or the adapter as another run left it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from trainers.ppo import policy

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what the libraries say of each other is not looked at here
    ids = torch.arange(6, 18).view(2, 6)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(work / "model").eval(), lora)

    def moved() -> None:
        for name, parameter in model.named_parameters():
            if ".default." in name:
                parameter.data.add_(torch.randn_like(parameter))

    with torch.no_grad():
        bare = model(ids).logits
        moved()
        adapted = model(ids).logits
        with policy.reference_active(model):
            assert torch.equal(model(ids).logits, bare)
        policy.add_reference_adapter(model)
        moved()
        with policy.reference_active(model):
            assert torch.equal(model(ids).logits, adapted)
        again = model(ids).logits
    assert not any(torch.equal(one, other) for one, other in ((bare, adapted), (adapted, again), (bare, again)))
    return 0


def test_a_policy_with_an_adapter_is_compared_with_where_it_began(work: Path, tmp_path: Path) -> None:
    pid = attempts.fork(partial(compare_adapters, work), tmp_path / "stderr.log")
    assert attempts.ended(pid) == 0, (tmp_path / "stderr.log").read_text()


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_another_number_of_processes_is_refused(work: Path, tmp_path: Path) -> None:
    """Each process has completions of its own, so the rollout would be another; this host's fault, not the run's."""
    run = spec(work, "ppo") | {"checkpoint": {"every": "4 steps"}}
    whole = attempts.make(tmp_path / "whole", run)
    rest = attempts.make(tmp_path / "rest", run, resume=whole.checkpoint(4), ranks=2)
    assert rest.outcome is not None and rest.code == 1
    assert "it trains on completions that each process generates; resume with 1 process" in rest.outcome.message


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
@pytest.mark.parametrize("lora", [{}, {"lora": LORA}])
def test_how_a_model_likes_to_be_sampled_is_no_part_of_it(work: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    """Its probabilities know nothing of a penalty, so completions must not either; and the result keeps the setting."""
    run = spec(work, "ppo", **lora)
    penalized = shutil.copytree(work / "model", tmp_path / "model")
    settings = json.loads((penalized / "generation_config.json").read_text())
    (penalized / "generation_config.json").write_text(json.dumps({**settings, "repetition_penalty": 1000.0}))
    plain = attempts.make(tmp_path / "plain", run)
    made = attempts.make(tmp_path / "penalized", run | {"model": {"name_or_path": str(penalized)}})
    assert (made.code, made.weights()) == (0, plain.weights()), (made.folder / "stderr.log").read_text()
    if not lora:
        left = json.loads((made.folder / "output" / "generation_config.json").read_text())
        assert left["repetition_penalty"] == 1000.0


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_a_reward_model_need_not_know_what_texts_are_filled_up_with(work: Path, tmp_path: Path) -> None:
    judge = attempts.make(tmp_path / "judge", spec(work, "reward")).folder / "output"
    bare = shutil.copytree(judge, tmp_path / "bare" / "output")
    for name, key in (("config.json", "pad_token_id"), ("tokenizer_config.json", "pad_token")):
        known = json.loads((bare / name).read_text())
        assert known.pop(key) is not None
        (bare / name).write_text(json.dumps(known))
    one, other = (
        attempts.make(tmp_path / name, spec(work, "ppo", rewards=[{"model": str(folder)}]))
        for name, folder in (("one", judge), ("other", bare))
    )
    assert (one.code, other.code) == (0, 0), (other.folder / "stderr.log").read_text()
    assert other.curve == one.curve


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
def test_a_reward_model_judges_dialogues(work: Path, tmp_path: Path) -> None:
    judge = attempts.make(tmp_path / "judge", spec(work, "reward"))
    assert judge.code == 0
    rows = tmp_path / "chats.jsonl"
    texts = [json.loads(line)["prompt"] for line in (work / "prompt.jsonl").read_text().splitlines()]
    asked = [[{"role": "user", "content": text}] for text in texts]
    rows.write_text("".join(f"{json.dumps({'prompt': each})}\n" for each in asked))
    sources = [{"path": str(rows)}]
    run = spec(work, "ppo", data={"train": sources, "eval": sources}, rewards=[{"model": str(judge.folder / "output")}])
    made = attempts.make(tmp_path / "run", run)
    assert made.code == 0, (made.folder / "stderr.log").read_text()
    logged = {(6, "reward"), (4, "eval_reward"), (6, "rewards/output/mean"), (6, "explained_variance")}
    assert logged <= made.curve.keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"launch": {"fsdp_config": {"fsdp_version": 2}}}, "launch.fsdp_config: does not go with method: ppo"),
        ({"launch": {"deepspeed_config": {"zero_stage": 2}}}, "launch.deepspeed_config: does not go with method: ppo"),
        ({"options": {"use_vllm": True}}, "options.use_vllm: does not go with method: ppo"),
    ],
)
def test_what_it_does_not_do_is_refused_by_name(work: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(RunFileErrors, match=said):
        parse_run_file(spec(work, "ppo") | change)


@pytest.mark.slow
@pytest.mark.rotating(4, of="training")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 1.5}, "gamma must lie between 0 and 1, found 1.5"),
        ({"kl_target": 1.0, "kl_coef": 0.0}, "kl_target must be more than 0, and so must kl_coef"),
        ({"num_mini_batches": 100}, "a rollout takes 400 prompts"),
    ],
)
def test_options_that_make_no_sense_are_refused(work: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    run = spec(work, "ppo")
    made = attempts.make(tmp_path / "run", run | {"options": {**run["options"], **options}})
    assert made.code != 0 and made.outcome is not None and said in made.outcome.message
