"""Every run file that a page prints is one that Relay takes."""

from pathlib import Path

import pytest

from runfile import RunFileErrors, parse_run_file
from runfile.reading import parse_yaml_value
from tests.docs.page import PAGES, Block, blocks

PRINTED = [
    (page, at, block)
    for page in sorted([*PAGES.rglob("*.md"), PAGES.parent / "README.md"])
    for at, block in enumerate(blocks(page), 1)
    if "version: relay/v1" in block.text and block.language == "yaml"
]


@pytest.mark.parametrize(
    ("page", "at", "block"), PRINTED, ids=[f"{page.relative_to(PAGES.parent)}-{at}" for page, at, _ in PRINTED]
)
def test_a_printed_run_file_is_taken(page: Path, at: int, block: Block) -> None:
    """But for the files that it names, which are not here."""
    try:
        parse_run_file(parse_yaml_value(block.text))
    except RunFileErrors as mistakes:
        pytest.fail(f"{page.name}, block {at}: {mistakes}")
