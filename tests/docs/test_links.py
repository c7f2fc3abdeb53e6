"""The pages are complete and lead somewhere: each is linked from the index, each link and path has a target."""

import re
from pathlib import Path

import pytest

from tests.docs.page import PAGES

ROOT = PAGES.parent
WRITTEN = sorted([*PAGES.rglob("*.md"), *ROOT.glob("*.md")])
GUIDES = sorted([ROOT / "CONTRIBUTING.md", *(PAGES / "contributing").glob("*.md")])
AT_THE_TOP = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def test_the_index_links_every_page() -> None:
    linked = {(PAGES / target.partition("#")[0]).resolve() for target in links(PAGES / "index.md")}
    assert not [page.name for page in PAGES.rglob("*.md") if page.name != "index.md" and page.resolve() not in linked]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_contributors_are_sent_to_exists(page: Path) -> None:
    """Paths in backticks, from the root of the repository."""
    named = re.findall(r"`([\w./-]+/[\w./-]*|Makefile|pyproject\.toml)`", page.read_text())
    assert not [path for path in named if path.partition("/")[0] in AT_THE_TOP and not (ROOT / path).exists()]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_that_contributors_are_sent_to_is_in_the_code(page: Path) -> None:
    """Names in backticks: functions, classes, constants."""
    code = "\n".join(path.read_text() for folder in sorted(AT_THE_TOP) for path in (ROOT / folder).rglob("*.py"))
    named = re.findall(r"`@?(_?[A-Za-z]\w*(?:\.[a-z]\w+)?)(?:\([^`]*\))?`", page.read_text())
    assert not [name for name in named if name not in code and not name.endswith((".md", ".py"))]


def links(page: Path) -> list[str]:
    """The targets of a page's links to other files of the repository, code left out."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [target for target in _LINK.findall(text) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
