"""Which files of a checkpoint can be loaded."""

from storage.loadable import describe_missing_weights, is_adapter, library_of, select_loadable


def test_a_librarys_checkpoint_goes_without_the_trainers_state() -> None:
    model = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"}
    state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "relay_state.json"}
    ours = {"README.md", "manifest.json", "rank_00000.json", "relay.json"}
    files = select_loadable([*model, *state, *ours])
    assert set(files) == model
    assert is_adapter(files)


def test_a_sharded_model_goes_whole() -> None:
    names = {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    }
    files = select_loadable([*names, "optimizer.pt"])
    assert set(files) == names
    assert not is_adapter(files)


def test_a_programs_own_checkpoint_is_taken_whole() -> None:
    assert set(select_loadable(["iter/model_rng.pt", "step.txt", "manifest.json"])) == {
        "iter/model_rng.pt",
        "step.txt",
    }


def test_shards_of_a_framework_are_no_part_of_a_model() -> None:
    names = {"config.json", "model.safetensors", "tokenizer_config.json"}
    shards = ["pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"]
    more = [
        "pytorch_model_fsdp.bin",
        "optimizer.bin",
        "global_step4/zero_pp_rank_0_mp_rank_00_model_states.pt",
        "latest",
    ]
    assert set(select_loadable([*names, *shards, *more])) == names


def test_weights_that_are_pickled_are_taken_where_there_are_no_others() -> None:
    names = {"config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"}
    assert set(select_loadable([*names, "optimizer.pt", "pytorch_model_fsdp.bin"])) == names
    assert select_loadable(["config.json", "model.safetensors", "pytorch_model.bin"]) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_model_without_weights_is_none() -> None:
    """A library would fail to load it, so no library is named, and nothing is left out."""
    shards = ["config.json", "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"]
    assert (library_of(shards), select_loadable(shards)) == ("", shards)
    assert describe_missing_weights(shards) == "no weights beside config.json"
    assert describe_missing_weights(["a.pt"]) == "no config.json, no adapter_config.json"
    assert describe_missing_weights(["adapter_config.json", "adapter_model.safetensors"]) == ""
