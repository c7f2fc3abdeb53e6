"""Which files of a checkpoint can be loaded."""

from pathlib import Path

from agent.hub.model import is_adapter, loadable


def folder_of(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x")
    return path


def test_a_librarys_checkpoint_goes_without_the_trainers_state(tmp_path: Path) -> None:
    model = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"}
    state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "relay_state.json"}
    ours = {"README.md", "manifest.json", "rank_00000.json", "relay.json"}
    files = loadable(folder_of(tmp_path, *model, *state, *ours))
    assert set(files) == model
    assert is_adapter(files)


def test_a_sharded_model_goes_whole(tmp_path: Path) -> None:
    names = {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    }
    files = loadable(folder_of(tmp_path, *names, "optimizer.pt"))
    assert set(files) == names
    assert not is_adapter(files)


def test_a_programs_own_checkpoint_is_taken_whole(tmp_path: Path) -> None:
    assert set(loadable(folder_of(tmp_path, "iter/model_rng.pt", "step.txt", "manifest.json"))) == {
        "iter/model_rng.pt",
        "step.txt",
    }
