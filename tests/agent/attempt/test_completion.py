"""Which files are a run's result."""

from pathlib import Path

from agent.attempt.completion import build_manifest, list_folder, match_outputs


def test_globs_name_files_at_any_depth_and_say_what_matched_nothing(tmp_path: Path) -> None:
    for name in ("export/a.bin", "export/deep/b.bin", "other.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    files, empty = match_outputs(tmp_path, ["export/**", "none/*"])
    assert sorted(files) == ["export/a.bin", "export/deep/b.bin"] and empty == ["none/*"]
    assert [file.path for file in build_manifest(files).files] == sorted(files)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    """R7."""
    (tmp_path / "secret").write_text("x")
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd/link").symlink_to(tmp_path / "secret")
    assert match_outputs(tmp_path / "cwd", ["*"]) == ({}, ["*"])


def test_an_output_folder_that_is_empty_or_absent_is_no_result(tmp_path: Path) -> None:
    assert list_folder(tmp_path) == {} and list_folder(tmp_path / "none") == {}
