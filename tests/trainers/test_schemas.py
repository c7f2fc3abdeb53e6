"""The committed schemas are those of the installed libraries, and cover every option."""

import dataclasses
import json

import jsonschema
import pytest

from tests.trainers.deferred import deferred_imports
from trainers import methods

with deferred_imports():
    from trainers import schemas


@pytest.mark.parametrize("method", methods.NAMES)
def test_fresh(method: str) -> None:
    assert (schemas.FOLDER / f"{method}.json").read_text() == schemas.render_schema(method), "run `make schemas`"


@pytest.mark.parametrize("method", methods.NAMES)
def test_every_option_is_either_the_users_or_relays(method: str) -> None:
    schema = schemas.build_method_schema(method)
    names = {field.name for field in dataclasses.fields(methods.load_method(method).config_class) if field.init}
    assert set(schema["properties"]) | set(schema["x-relay-owned"]) == names
    assert set(schema["properties"]).isdisjoint(schema["x-relay-owned"])


def test_a_loss_of_several_or_one() -> None:
    """DPO mixes losses; a list of them is checked name by name."""
    validator = jsonschema.Draft202012Validator(json.loads((schemas.FOLDER / "dpo.json").read_text()))
    given = ({"loss_type": "ipo"}, {"loss_type": ["sigmoid", "sft"]}, {"loss_type": ["sigmoyd"]}, {"loss_type": "x"})
    assert [validator.is_valid(options) for options in given] == [True, True, False, False]


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (
            {"learning_rate": 1e-4, "max_steps": 5, "packing": True, "lr_scheduler_type": "cosine", "max_length": None},
            [],
        ),
        ({"learning_rate": "fast"}, ["learning_rate"]),
        ({"lr_scheduler_type": "cosin"}, ["lr_scheduler_type"]),
        ({"packing_strategy": "best"}, ["packing_strategy"]),
        ({"max_steps": 1.5}, ["max_steps"]),
        ({"learning_rate": -1e-4}, ["learning_rate"]),
        ({"weight_decay": -0.1, "adam_beta2": 1}, ["weight_decay", "adam_beta2"]),
        ({"max_grad_norm": -1, "max_length": 0}, ["max_grad_norm", "max_length"]),
        ({"per_device_train_batch_size": 0, "dataloader_num_workers": 0}, ["per_device_train_batch_size"]),
    ],
)
def test_values(options: dict[str, object], wrong: list[str]) -> None:
    validator = jsonschema.Draft202012Validator(json.loads((schemas.FOLDER / "sft.json").read_text()))
    assert [error.path[0] for error in validator.iter_errors(options)] == wrong


@pytest.mark.parametrize("method", methods.NAMES)
def test_defaults_and_types_agree(method: str) -> None:
    for property_ in schemas.build_method_schema(method)["properties"].values():
        if "default" in property_:
            jsonschema.validate(property_["default"], property_, cls=jsonschema.Draft202012Validator)
