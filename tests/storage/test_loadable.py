"""Which files of a checkpoint can be loaded."""

from storage.loadable import is_adapter, select_loadable


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
