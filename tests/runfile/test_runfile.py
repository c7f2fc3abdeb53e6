"""The run file: what it means, and which mistakes are reported when it is wrong."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runfile import (
    Every,
    RunFile,
    RunFileErrors,
    UnitError,
    find_inputs,
    format_duration,
    format_size,
    load_run_file,
    parse_duration,
    parse_run_file,
    parse_size,
    reading,
)

COMMAND: dict[str, Any] = {"version": "relay/v1", "method": "command", "command": ["true"]}
SFT: dict[str, Any] = {
    "version": "relay/v1",
    "name": "sums",
    "method": "sft",
    "model": {"name_or_path": "owner/model"},
    "data": {"train": "train.jsonl"},
}


TEXT = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
KEYS = st.sampled_from(["path", "split", "a", "max_steps", "every"]) | st.text()
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def write_run_file(folder: Path, text: str, name: str = "run.yaml") -> Path:
    (folder / "train.jsonl").write_text('{"text": "a"}\n')
    file = folder / name
    file.write_text(text)
    return file


def mistakes(file: Path, *sets: str) -> list[str]:
    with pytest.raises(RunFileErrors) as caught:
        load_run_file(file, sets)
    return [str(mistake) for mistake in caught.value.mistakes]


def mistakes_of(**changes: Any) -> list[str]:
    """Return the texts of the mistakes of a command run with these keys."""
    with pytest.raises(RunFileErrors) as caught:
        parse_run_file({**COMMAND, **changes})
    return [mistake.text for mistake in caught.value.mistakes]


SFT_TEXT = """\
version: relay/v1
name: sums
method: sft
model: {name_or_path: owner/model}
data: {train: train.jsonl}
"""


class TestUnits:
    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("10m", 600),
            ("90s", 90),
            ("1h30m", 5400),
            ("250ms", 0.25),
            ("2 days", 172800),
            ("1.5h", 5400),
            ("1w", 604800),
            ("10 minutes", 600),
        ],
    )
    def test_durations(self, text: str, seconds: float) -> None:
        assert parse_duration(text) == seconds

    @pytest.mark.parametrize("text", ["", "10", "m", "10 parsecs", "-5s", "0s", "10m!", "1e999h", "s10", "٣s"])
    def test_what_is_not_a_duration_is_refused_with_what_would_be(self, text: str) -> None:
        with pytest.raises(UnitError, match=r"duration|unit"):
            parse_duration(text)

    @given(st.floats(min_value=1e-6, max_value=1e12))
    def test_a_duration_survives_its_canonical_text(self, seconds: float) -> None:
        assert parse_duration(format_duration(seconds)) == seconds

    @given(st.integers(min_value=0, max_value=2**62))
    def test_a_size_survives_its_canonical_text(self, size: int) -> None:
        assert parse_size(format_size(size)) == size

    @given(st.text(max_size=20))
    def test_any_text_is_a_duration_or_a_unit_error(self, text: str) -> None:
        for parse_unit in (parse_duration, parse_size, Every.parse):
            try:
                parse_unit(text)
            except UnitError as error:
                assert str(error)

    @pytest.mark.parametrize(
        ("text", "size"), [("24GiB", 24 << 30), ("1.5Ti", 3 << 39), ("500MB", 500_000_000), ("7 b", 7), ("2k", 2000)]
    )
    def test_sizes(self, text: str, size: int) -> None:
        assert parse_size(text) == size

    def test_an_interval_is_a_duration_or_a_number_of_steps(self) -> None:
        assert Every.parse("500 steps") == Every(steps=500)
        assert Every.parse("10m") == Every(seconds=600.0)
        assert str(Every(steps=1)) == "1 steps" and Every.parse("1 step") == Every(steps=1)


class TestReading:
    def test_yaml_is_read_by_the_core_schema_of_1_2(self, tmp_path: Path) -> None:
        file = write_run_file(
            tmp_path,
            'method: command\ncommand: [echo, yes, on, no, "3"]\n'
            "labels: {a: off, b: 1_000}\nlifecycle: {max_attempts: 010}\n",
        )
        run = load_run_file(file)
        assert run.command == ("echo", "yes", "on", "no", "3")
        assert run.labels == {"a": "off", "b": "1_000"}
        assert run.lifecycle.max_attempts == 10

    def test_a_number_with_an_exponent_is_a_number(self, tmp_path: Path) -> None:
        file = write_run_file(tmp_path, SFT_TEXT + "options: {learning_rate: 3e-4, adam_epsilon: 1e-8}\n")
        assert load_run_file(file).options == {"learning_rate": 3e-4, "adam_epsilon": 1e-8}

    def test_yaml_json_and_toml_say_the_same(self, tmp_path: Path) -> None:
        text = "options: {learning_rate: 3e-4, max_length: 64}\ncheckpoint: {every: 500 steps}\n"
        yaml_run = load_run_file(write_run_file(tmp_path, SFT_TEXT + text))
        data = {**SFT, "options": {"learning_rate": 3e-4, "max_length": 64}, "checkpoint": {"every": "500 steps"}}
        toml = (
            'version = "relay/v1"\nname = "sums"\nmethod = "sft"\nmodel.name_or_path = "owner/model"\n'
            '[data]\ntrain = "train.jsonl"\n[options]\nlearning_rate = 3e-4\nmax_length = 64\n'
            '[checkpoint]\nevery = "500 steps"\n'
        )
        assert load_run_file(write_run_file(tmp_path, json.dumps(data, indent="\t"), "run.json")) == yaml_run
        assert load_run_file(write_run_file(tmp_path, toml, "run.toml")) == yaml_run

    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            (
                "run.yaml",
                "method: command\ncommand: [x]\n\nlabelz: {}\n",
                "line 4, column 1: labelz: unknown key; did you mean labels?",
            ),
            (
                "run.json",
                '{"method": "command",\n "command": ["x"],\n\t"labelz": {}}',
                "line 3, column 2: labelz: unknown key; did you mean labels?",
            ),
            (
                "run.toml",
                'method = "command"\ncommand = ["x"]\n[labelz]\na = 1\n',
                "line 3, column 1: labelz: unknown key; did you mean labels?",
            ),
            (
                "run.toml",
                'method = "command"\ncommand = ["x"]\n[lifecycle]\non_oomm = "a"\n',
                "line 4, column 1: lifecycle.on_oomm: unknown key; did you mean on_oom?",
            ),
            ("run.yaml", "method: command\nmethod: sft\n", "line 2, column 1: method: given twice (first on line 1)"),
            ("run.json", '{"method": "command", "method": "sft"}', "method: given twice"),
            ("run.yaml", "a: [1\nb: 2", "line 2, column 2: not YAML: expected ',' or ']', but got ':'"),
            ("run.yaml", "a:\n\t- b\n", "line 2, column 1: not YAML: a tab; indent with spaces"),
            ("run.yaml", "a: [1\n", "line 2, column 1: not YAML: expected ',' or ']', but got the end of the file"),
            ("run.json", "{", "line 1, column 2: not JSON: Expecting property name enclosed in double quotes"),
            ("run.toml", "a = \nb = 1\n", "line 1, column 5: not TOML: Invalid value"),
            ("run.yaml", "", "is empty"),
            ("run.yaml", "- a\n", "a run file is a mapping (key: value), at its top level"),
        ],
    )
    def test_a_mistake_has_its_place_in_every_language(
        self, tmp_path: Path, name: str, text: str, expected: str
    ) -> None:
        assert mistakes(write_run_file(tmp_path, text, name)) == [expected]

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        assert mistakes(tmp_path / "none.yaml") == ["cannot be read: No such file or directory"]
        assert mistakes(tmp_path) == ["this is a folder, not a run file"]
        (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
        assert mistakes(tmp_path / "latin.yaml") == ["is not UTF-8 text"]

    def test_aliases_and_merges_work_and_cannot_explode(self, tmp_path: Path) -> None:
        run = load_run_file(write_run_file(tmp_path, "method: command\ncommand: &c [a]\nresume_args: *c\n"))
        assert run.resume_args == run.command == ("a",)
        merged = load_run_file(
            write_run_file(tmp_path, "method: command\ncommand: [a]\nlabels: &l {a: b}\nenv: {<<: *l, c: d}\n")
        )
        assert merged.env == {"a": "b", "c": "d"}
        bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
        )
        assert "aliases (*name) make this file endless" in mistakes(write_run_file(tmp_path, bomb))[0]
        assert "endless" in mistakes(write_run_file(tmp_path, "a: &a [*a]\n"))[0]

    @given(st.binary(max_size=60))
    def test_any_bytes_are_a_document_or_mistakes(self, content: bytes) -> None:
        for suffix in (".yaml", ".json", ".toml"):
            try:
                assert isinstance(reading.decode_document(content, suffix, "x").data, dict)
            except RunFileErrors as error:
                assert error.mistakes


class TestHostileFiles:
    """F18: what is huge, deep or no text is a mistake, never a crash."""

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("a.yaml", "labels: " + "[" * 3000 + "]" * 3000, "is nested too deeply"),
            ("a.yaml", "options: " + "{a: " * 40 + "1" + "}" * 40, "options.a.a: is nested too deeply"),
            ("a.json", '{"a":' * 100_000, "is nested too deeply"),
            ("a.toml", "a=" + "[" * 5000 + "]" * 5000, "is nested too deeply"),
            ("a.yaml", "seed: " + "9" * 5000, "holds a number that is too long"),
            ("a.json", '{"seed": ' + "9" * 5000 + "}", "holds a number that is too long"),
            ("a.yaml", "options: {max_steps: 99999999999999999999}", "options.max_steps: is too large"),
            ("a.yaml", 'labels: {a: "\\ud800"}', "labels.a: holds half a character"),
            ("a.json", '{"labels": {"a": "x\\u0000"}}', "labels.a: holds a NUL character"),
        ],
    )
    def test_it_is_said(self, tmp_path: Path, name: str, text: str, said: str) -> None:
        assert said in mistakes(write_run_file(tmp_path, text, name))[0]

    @given(ANYTHING, st.sampled_from(sorted(RunFile.model_fields)), st.sampled_from(["sft", "command"]))
    def test_any_value_under_any_key_is_a_run_or_mistakes(self, value: Any, key: str, method: str) -> None:
        base = SFT if method == "sft" else COMMAND
        try:
            run = parse_run_file({**base, key: value})
        except RunFileErrors as error:
            assert error.mistakes and all(str(mistake) for mistake in error.mistakes)
        else:
            assert parse_run_file(json.loads(run.to_json())).digest() == run.digest()


class TestMistakes:
    def test_all_at_once_each_with_line_path_and_what_would_be_right(self, tmp_path: Path) -> None:
        text = (
            "version: relay/v1\nname: Sums SFT\nmethod: sft\ngpus: 2\nmodel: {name_or_path: owner/model}\n"
            "data:\n  train:\n    - {path: tran.jsonl, wieght: 1}\noptions:\n  learning_rat: 3e-4\n  max_length: long\n"
            "checkpoint: {every: 10}\nlifecycle: {on_disconnect: contine}\n"
        )
        assert mistakes(write_run_file(tmp_path, text)) == [
            "line 2, column 7: name: a name must have small letters, digits, '.', '_' and '-' only, at most 128, "
            'for instance "sums-sft"',
            "line 4, column 1: gpus: unknown key; write resources.gpus_per_node",
            'line 8, column 14: data.train[0].path: there is no file "tran.jsonl"; did you mean train.jsonl?',
            "line 8, column 26: data.train[0].wieght: unknown key; did you mean weight?",
            "line 10, column 3: options.learning_rat: unknown option; did you mean learning_rate?",
            'line 11, column 15: options.max_length: a whole number or null is needed, found the text "long"',
            'line 12, column 21: checkpoint.every: an interval must have a unit: "10 steps" or "10s"',
            'line 13, column 28: lifecycle.on_disconnect: continue or stop is needed, found the text "contine"; '
            "did you mean continue?",
        ]

    @pytest.mark.parametrize(
        ("key", "answer"),
        [
            ("gpus", "write resources.gpus_per_node"),
            ("accelerators", "write resources.gpus_per_node"),
            ("num_nodes", "write resources.nodes"),
            ("max_duration", "write lifecycle.max_runtime"),
            ("base_model", "write model.name_or_path"),
            ("dataset", "write data.train"),
            ("args", "write options"),
            ("epochs", "write options.num_train_epochs"),
            ("lr", "write options.learning_rate"),
            ("batch_size", "write options.per_device_train_batch_size"),
            ("max_runtime", "it belongs to lifecycle.max_runtime"),
            ("resum_args", "did you mean resume_args?"),
            ("output_dir", "not needed: Relay chooses the folder and keeps the result"),
        ],
    )
    def test_the_names_other_tools_use_are_answered_with_ours(self, key: str, answer: str) -> None:
        assert mistakes_of(**{key: 1}) == [f"{key}: unknown key; {answer}"]

    def test_an_option_at_the_top_is_sent_to_options(self) -> None:
        with pytest.raises(RunFileErrors, match=r"learning_rate: unknown key; it belongs to options\.learning_rate"):
            parse_run_file({**SFT, "learning_rate": 1e-4})

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"files": "run.sh"}, 'files: a list is needed, found the text "run.sh"; write [run.sh]'),
            (
                {"command": "python train.py"},
                'command: a list is needed, found the text "python train.py"; '
                'a command is a list of arguments: ["bash", "-c", "…"] where a shell is wanted',
            ),
            ({"env": {"A": 3}}, 'env.A: text is needed, found the number 3; put quotes around it: "3"'),
            ({"env": {"A": True}}, 'env.A: text is needed, found true; put quotes around it: "true"'),
            (
                {"env": {"RELAY_RUN_ID": "x"}},
                "env.RELAY_RUN_ID: is refused: names beginning with RELAY_ belong to Relay",
            ),
            ({"labels": {"a": 1}}, 'labels.a: text is needed, found the number 1; put quotes around it: "1"'),
            ({"resources": {"nodes": 0}}, "resources.nodes: at least 1 is needed"),
            ({"resources": {"nodes": {"min": 3, "max": 1}}}, "resources.nodes: min (3) is more than max (1)"),
            (
                {"resources": {"require_cuda": "yes"}},
                'resources.require_cuda: true or false is needed, found the text "yes"',
            ),
            (
                {"resources": {"gpus_per_node": 1.5}},
                "resources.gpus_per_node: a whole number is needed, found the number 1.5",
            ),
            ({"resources": {"vram_gib": -1}}, "resources.vram_gib: more than 0 is needed, found the number -1"),
            ({"lifecycle": {"max_attempts": True}}, "lifecycle.max_attempts: a whole number is needed, found true"),
            ({"workdir": "../x"}, 'workdir: "../x" leaves the working folder: give a path inside it'),
            ({"outputs": ["/etc/*"]}, 'outputs[0]: "/etc/*" leaves the working folder: give a path inside it'),
            (
                {"secrets": ["HF_TOKEN=abc"]},
                "secrets[0]: a secret is named here, its value never is: write the name alone",
            ),
            ({"method": "sfd"}, 'method: there is no method "sfd"; did you mean sft?'),
            (
                {"command": []},
                "command: is missing; method: command runs one, for instance command: [python, train.py]",
            ),
            (
                {"model": {"name_or_path": "a/b"}},
                "model: does not go with method: command; a command takes what it needs from files, command and env",
            ),
            (
                {"options": {"lr": 1}},
                "options.lr: command has no options; a command takes its settings from command and env",
            ),
            ({"hub": {"repo": "sums"}}, 'hub.repo: the text "sums" is no repository on the Hub; write owner/name'),
            (
                {"hub": {"repo": "me/sums", "push": "merged"}},
                "hub.push: needs lora; leave it out: without an adapter all weights are pushed",
            ),
            ({"version": "v2"}, 'version: relay/v1 is needed, found the text "v2"'),
            (
                {"adopt": {"checkpoints": {"pattern": "s*", "complete": {"marker": "DONE", "still_for": "3s"}}}},
                "adopt.checkpoints.complete: give marker or still_for, not both",
            ),
            (
                {"checkpoint": {"store": "s3://key:secret@bucket/x"}},
                "checkpoint.store: s3:// must be written without keys, passwords and parameters: "
                "hosts take those from their own environment",
            ),
            (
                {"checkpoint": {"store": "file://runs"}},
                "checkpoint.store: a file:// store must be an absolute folder that hosts share, like file:///mnt/share/runs",
            ),
            (
                {"checkpoint": {"store": "relay://elsewhere"}},
                "checkpoint.store: the coordinator's own store is just relay://",
            ),
            (
                {"checkpoint": {"store": "hf://me"}},
                "checkpoint.store: a store on the Hub is a repository: hf://owner/name",
            ),
            (
                {"checkpoint": {"store": "hf://me/x", "layout": "framework"}},
                "checkpoint: layout: framework goes with file://, s3://, gs:// and az://, not with hf://me/x",
            ),
            ({"after": "runs/x@best"}, "after: it waits for a run as a whole: runs/x"),
            (
                {"checkpoint": {"keep": {"best": 1}}},
                "checkpoint.keep: best needs a metric to compare by, for instance metric: eval_loss",
            ),
        ],
    )
    def test_wrong_values_are_said_in_words(self, changes: dict[str, Any], text: str) -> None:
        assert mistakes_of(**changes)[0] == text

    @pytest.mark.parametrize(
        ("metric", "text"),
        [
            ("eval_lss", "nothing reports eval_lss; did you mean eval_loss?"),
            ("loss", "loss is reported under another name; write train_loss"),
            ("eval_loss", "eval_loss needs rows to evaluate on; add data.eval, for instance {split: 0.02}"),
            ("reward_std", None),
            ("eval_kl", "eval_kl needs rows to evaluate on; add data.eval, for instance {split: 0.02}"),
        ],
    )
    def test_a_metric_to_keep_by_that_nothing_will_report(self, metric: str, text: str | None) -> None:
        keep: dict[str, Any] = {"checkpoint": {"keep": {"best": 1, "metric": metric}}}
        training = {
            "version": "relay/v1",
            "method": "sft",
            "model": {"name_or_path": "./m"},
            "data": {"train": "rows.jsonl"},
            **keep,
        }
        try:
            parse_run_file(training)
            found = None
        except RunFileErrors as errors:
            found = str(errors.mistakes[0])
        assert found == (None if text is None else f"checkpoint.keep.metric: {text}")
        parse_run_file({**COMMAND, **keep})  # a command reports what it likes

    def test_what_is_kept_carries_its_units(self) -> None:
        keep = {"last": 2, "best": 1, "metric": "eval_loss", "every": "4h", "max_age": "7d", "max_total": "1.5GiB"}
        run = parse_run_file({**COMMAND, "checkpoint": {"keep": keep}})
        found = run.checkpoint.keep
        assert (found.every.seconds if found.every else 0, found.max_age, found.max_total) == (14400, 604800, 3 << 29)
        assert parse_run_file(run.to_dict()) == run
        assert mistakes_of(checkpoint={"keep": {"max_total": 5}})[0].startswith(
            'checkpoint.keep.max_total: a size must have a unit: "5GiB"'
        )
        assert "is not a size" in mistakes_of(checkpoint={"keep": {"max_total": "much"}})[0]
        assert "more than zero" in mistakes_of(checkpoint={"keep": {"max_total": "0GiB"}})[0]

    def test_a_training_run_needs_a_model_and_data(self) -> None:
        with pytest.raises(RunFileErrors) as caught:
            parse_run_file({"method": "sft"})
        assert [m.path_text for m in caught.value.mistakes] == ["model", "data"]

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"max_steps": 0}, "options.max_steps: is 0; a run trains one step or more"),
            ({"max_steps": -3}, "options.max_steps: at least -1 is needed"),
            ({"num_train_epochs": 0}, "options.num_train_epochs: more than 0 is needed"),
            ({"num_train_epochs": -1.5}, "options.num_train_epochs: more than 0 is needed"),
        ],
    )
    def test_a_run_of_no_steps(self, options: dict[str, Any], text: str) -> None:
        run = {"version": "relay/v1", "method": "sft", "model": {"name_or_path": "a/b"}, "data": {"train": "a.jsonl"}}
        assert parse_run_file({**run, "options": {"max_steps": -1, "num_train_epochs": 0.5}})
        with pytest.raises(RunFileErrors) as wrong:
            parse_run_file({**run, "options": options})
        assert text in str(wrong.value)

    def test_a_stream_of_rows(self) -> None:
        """Only for trainers that take one, and with an end."""
        rows = {"train": "a.jsonl", "streaming": True}
        trained = {"version": "relay/v1", "model": {"name_or_path": "a/b"}, "data": rows}
        assert parse_run_file({**trained, "method": "sft", "options": {"max_steps": 9}}).data.streaming  # type: ignore[union-attr]
        for method, text in (
            ("sft", "options.max_steps: is missing; a stream of rows does not say where it ends"),
            (
                "orpo",
                "data.streaming: does not go with method: orpo; leave it out: it belongs to sft, cpt, dpo, kto, reward",
            ),
        ):
            with pytest.raises(RunFileErrors) as wrong:
                parse_run_file({**trained, "method": method})
            assert text in str(wrong.value)

    def test_a_missing_method_is_one_mistake(self) -> None:
        with pytest.raises(RunFileErrors) as caught:
            parse_run_file({})
        assert [m.text for m in caught.value.mistakes] == [
            "method: is missing; one of the methods, for instance method: sft"
        ]

    @pytest.mark.parametrize(
        ("changes", "path"),
        [
            ({"image": "x"}, "image"),
            ({"secrets": ["A"]}, "secrets"),
            ({"trackers": {"wandb": {}}}, "trackers"),
            ({"alerts": [{"url": "https://x"}]}, "alerts"),
            ({"resources": {"nodes": 2}}, "resources.nodes"),
            ({"adopt": {"metrics": {"from": "hf_log"}}}, "adopt.metrics"),
            ({"lifecycle": {"max_runtime": "3h"}}, "lifecycle.max_runtime"),
        ],
    )
    def test_what_is_not_done_yet_is_refused_and_never_ignored(self, changes: dict[str, Any], path: str) -> None:
        assert mistakes_of(**changes) == [f"{path}: is not supported yet; leave it out"]
        assert isinstance(parse_run_file({**COMMAND, **changes}, supported=False), RunFile)

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"lora": {"rank": 8}}, "lora.rank: unknown option; write lora.r"),
            ({"lora": {"lora_alfa": 8}}, "lora.lora_alfa: unknown option; did you mean lora_alpha?"),
            ({"options": {"save_steps": 5}}, "options.save_steps: is set by Relay; use checkpoint.every"),
            ({"options": {"lr": 5}}, "options.lr: unknown option; it is called learning_rate here"),
            ({"options": {"lr_scheduler_type": "cosin"}}, "did you mean cosine?"),
            ({"method": "dpo", "options": {"bta": 0.1}}, "options.bta: unknown option; did you mean beta?"),
            ({"method": "dpo", "options": {"loss_type": ["ipo", "sigmoyd"]}}, "options.loss_type[1]: "),
            ({"method": "kto", "options": {"sync_ref_model": True}}, "options.sync_ref_model: is set by Relay"),
            ({"model_init": {"revision": "x"}}, "model_init.revision: does not go here; write model.revision"),
        ],
    )
    def test_the_libraries_own_names_are_checked(self, changes: dict[str, Any], text: str) -> None:
        with pytest.raises(RunFileErrors) as caught:
            parse_run_file({**SFT, **changes})
        assert text in caught.value.mistakes[0].text

    def test_a_method_of_later_is_named_as_such(self) -> None:
        with pytest.raises(RunFileErrors, match=r"online_dpo is not supported yet; this release has sft, .*command"):
            parse_run_file({**SFT, "method": "online_dpo"})

    def test_no_message_is_the_validation_librarys(self) -> None:
        rubbish = [None, 1, -1.5, "x", True, [], {}, [1], {"a": {"b": 1}}, float("nan")]
        for key in RunFile.model_fields:
            for value in rubbish:
                try:
                    parse_run_file({**COMMAND, key: value})
                except RunFileErrors as error:
                    assert not re.search(r"pydantic|Input should|type=|Value error|validation error", str(error))


class TestOverrides:
    def test_values_are_typed_as_in_yaml(self, tmp_path: Path) -> None:
        file = write_run_file(tmp_path, SFT_TEXT)
        run = load_run_file(file, ["options.learning_rate=1e-4", "name=other", "data.train=[train.jsonl, train.jsonl]"])
        assert (run.options["learning_rate"], run.name) == (1e-4, "other")
        assert run.data is not None and len(run.data.train) == 2

    def test_a_mistake_names_the_override_that_brought_it(self, tmp_path: Path) -> None:
        file = write_run_file(tmp_path, SFT_TEXT)
        assert mistakes(file, "options.learning_rat=1") == [
            "--set options.learning_rat=1: options.learning_rat: unknown option; did you mean learning_rate?"
        ]
        assert mistakes(file, "learning_rate") == [
            "--set learning_rate: --set takes key=value, for instance options.learning_rate=1e-4"
        ]
        assert mistakes(file, "name.x=1") == ["--set name.x=1: name.x: name is a single value: nothing lies inside it"]
        assert mistakes(file, "name=[") != []

    def test_the_environment_is_text_whatever_it_looks_like(self, tmp_path: Path) -> None:
        file = write_run_file(tmp_path, "method: command\ncommand: [a]\n")
        run = load_run_file(file, ["env.STEPS=5", "env.ON=true", "labels.try=2"])
        assert run.env == {"STEPS": "5", "ON": "true"} and run.labels == {"try": "2"}
        assert mistakes(file, "env.RELAY_X=1")[0].startswith("--set env.RELAY_X=1: env.RELAY_X: is refused")

    def test_lists_are_reached_by_index(self, tmp_path: Path) -> None:
        file = write_run_file(tmp_path, "method: command\ncommand: [a, b]\n")
        assert load_run_file(file, ["command[1]=c"]).command == ("a", "c")
        assert "counted from 0" in mistakes(file, "command[2]=c")[0]


class TestResolved:
    def test_defaults_are_filled_in(self) -> None:
        run = parse_run_file(COMMAND)
        assert run.checkpoint.every == Every(seconds=600.0)
        assert (run.checkpoint.keep.last, run.checkpoint.store, run.seed, run.lifecycle.max_attempts) == (
            3,
            "relay://",
            42,
            3,
        )
        assert (run.resources.nodes.min, run.resources.gpus_per_node, run.resources.require_cuda) == (1, 1, False)
        assert run.lifecycle.stall_after == "auto" and run.lifecycle.on_disconnect == "continue"

    def test_writing_a_number_of_gpus_means_gpus(self) -> None:
        assert parse_run_file({**COMMAND, "resources": {"gpus_per_node": 2}}).resources.require_cuda
        assert parse_run_file({**COMMAND, "resources": {"vram_gib": "24GiB"}}).resources.vram_gib == 24.0
        assert not parse_run_file(
            {**COMMAND, "resources": {"gpus_per_node": 2, "require_cuda": False}}
        ).resources.require_cuda
        assert not parse_run_file({**COMMAND, "resources": {"gpus_per_node": 0}}).resources.require_cuda

    def test_a_run_survives_json_and_the_floats_of_a_struct(self) -> None:
        data = {
            **SFT,
            "options": {"max_length": 64, "learning_rate": 3e-4, "eval_steps": None},
            "data": {"train": ["a", {"path": "b"}], "eval": {"split": 0.02}},
        }
        run = parse_run_file(data)
        floats = json.loads(run.to_json(), parse_int=float)
        assert parse_run_file(floats) == run
        assert parse_run_file(floats).to_json() == run.to_json() and parse_run_file(floats).digest() == run.digest()
        assert run.options["eval_steps"] is None

    def test_seconds_may_be_given_as_numbers_by_a_program_but_not_in_a_file(self, tmp_path: Path) -> None:
        assert parse_run_file({**COMMAND, "checkpoint": {"every": 2.5}}).checkpoint.every == Every(seconds=2.5)
        assert (
            "must have a unit"
            in mistakes(write_run_file(tmp_path, "method: command\ncommand: [a]\ncheckpoint: {every: 3}\n"))[0]
        )

    @pytest.mark.parametrize("name", ["a", "a.b_c-1", "0", "x" * 128])
    def test_names_match_R7(self, name: str) -> None:
        assert parse_run_file({**COMMAND, "name": name}).name == name

    @pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "ü", "x" * 129, "a\n", ".."])
    def test_names_outside_R7_are_refused(self, name: str) -> None:
        assert mistakes_of(name=name)[0].startswith("name: ")

    @given(
        st.fixed_dictionaries(
            {
                "version": st.just("relay/v1"),
                "method": st.just("command"),
                "command": st.lists(TEXT, min_size=1, max_size=3),
            },
            optional={
                "labels": st.dictionaries(TEXT.filter(bool), TEXT),
                "seed": st.integers(0, 2**32 - 1),
                "resume_args": st.lists(TEXT),
                "checkpoint": st.builds(
                    lambda s: {"every": s},
                    st.one_of(st.floats(0.001, 1e9), st.integers(1, 10**9).map(lambda n: f"{n} steps")),
                ),
                "env": st.dictionaries(st.from_regex(r"\A[A-Q][A-Z_]{0,5}\Z"), TEXT),
            },
        )
    )
    def test_what_is_accepted_reads_back_equal(self, data: dict[str, Any]) -> None:
        run = parse_run_file(data)
        assert parse_run_file(json.loads(run.to_json())) == run
        assert parse_run_file(json.loads(run.to_json())).to_json() == run.to_json()


class TestTravelling:
    def paths(self, data: dict[str, Any], base: Path) -> list[str]:
        return [travel.path for travel in find_inputs(parse_run_file(data), base).files]

    def test_what_lies_beside_the_file_keeps_its_relative_path(self, tmp_path: Path) -> None:
        for name in (
            "data/a.jsonl",
            "data/b.jsonl",
            "scripts/x.sh",
            "scripts/lib/y.py",
            "scripts/.git/config",
            "scripts/__pycache__/z.pyc",
            "one.py",
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("x")
        run = parse_run_file(
            {
                **SFT,
                "data": {"train": ["data/*.jsonl", "hf://owner/rows"], "eval": "data/a.jsonl"},
                "files": ["scripts", "one.py"],
            }
        )
        result = find_inputs(run, tmp_path)
        assert [travel.path for travel in result.files] == [
            "data/a.jsonl",
            "data/b.jsonl",
            "one.py",
            "scripts/lib/y.py",
            "scripts/x.sh",
        ]
        assert result.runfile == run
        assert all(travel.source.read_text() == "x" for travel in result.files)

    def test_what_lies_outside_goes_to_external_and_the_run_file_says_so(self, tmp_path: Path) -> None:
        base, other = tmp_path / "run", tmp_path / "other"
        for folder in (base, other, other / "model"):
            folder.mkdir(exist_ok=True)
        for file in (other / "a.jsonl", other / "b.jsonl", other / "model" / "config.json"):
            file.write_text("x")
        data = {
            **SFT,
            "model": {"name_or_path": "../other/model"},
            "data": {"train": [str(other / "a.jsonl"), "../other/*.jsonl"]},
        }
        result = find_inputs(parse_run_file(data), base)
        spec = result.runfile.to_dict()
        assert [travel.path for travel in result.files] == [
            "external/0/a.jsonl",
            "external/0/b.jsonl",
            "external/1/model/config.json",
        ]
        assert [source["path"] for source in spec["data"]["train"]] == ["external/0/a.jsonl", "external/0/*.jsonl"]
        assert spec["model"] == {"name_or_path": "./external/1/model", "known_as": "../other/model"}

    def test_a_path_of_ones_own_called_external_is_not_overwritten(self, tmp_path: Path) -> None:
        base = tmp_path / "run"
        (base / "external" / "0").mkdir(parents=True)
        (base / "external" / "0" / "a.jsonl").write_text("mine")
        (tmp_path / "a.jsonl").write_text("other")
        result = find_inputs(parse_run_file({**SFT, "data": {"train": ["external/0/a.jsonl", "../a.jsonl"]}}), base)
        assert {t.path: t.source.read_text() for t in result.files} == {
            "external/0/a.jsonl": "mine",
            "external/1/a.jsonl": "other",
        }

    def test_a_model_on_the_hub_or_on_the_host_does_not_travel(self, tmp_path: Path) -> None:
        (tmp_path / "train.jsonl").write_text("x")
        for name in ("owner/model", "/no/such/folder/here"):
            assert self.paths({**SFT, "model": {"name_or_path": name}}, tmp_path) == ["train.jsonl"]

    def test_what_is_not_there_is_a_mistake_with_its_line(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "none.jsonl").touch()
        text = SFT_TEXT.replace("owner/model", "./nowhere").replace(
            "train.jsonl}", "[train.json, 'x/*.jsonl', empty, owner/rows, none.jsonl]}"
        )
        assert mistakes(write_run_file(tmp_path, text + "files: [empty, nope.sh]\n")) == [
            'line 4, column 23: model.name_or_path: there is no folder "./nowhere"; looked in ' + str(tmp_path),
            'line 5, column 16: data.train[0]: there is no file "train.json"; did you mean train.jsonl?',
            f'line 5, column 28: data.train[1]: no file matches "x/*.jsonl"; looked in {tmp_path}/x',
            'line 5, column 41: data.train[2]: "empty" holds no file of rows; these end in '
            ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, .feather (or .gz, .zst after that)",
            'line 5, column 48: data.train[3]: there is no file "owner/rows"; a data set on the Hub is written hf://owner/rows',
            'line 5, column 60: data.train[4]: "none.jsonl" is empty; each line of it is a row',
            'line 6, column 9: files[0]: the folder "empty" is empty',
            f'line 6, column 16: files[1]: there is no file "nope.sh"; looked in {tmp_path}',
        ]


def test_the_run_files_of_the_docs_and_the_examples_are_right(tmp_path: Path) -> None:
    """What people copy works: complete run files in the docs, and everything in `examples/`."""
    root = Path(__file__).parents[2]
    texts = [
        block
        for page in (root / "docs").glob("*.md")
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S)
    ]
    whole = [text for text in texts if "method:" in text and "version:" in text]
    assert len(whole) >= 2
    for text in whole:
        parse_run_file(reading.decode_document(text.encode(), ".yaml", "docs").data)
    examples = list((root / "examples").glob("*.yaml"))
    assert examples
    for path in examples:
        parse_run_file(reading.read_document(path).data)
