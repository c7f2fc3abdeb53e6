"""docs/contributing/architecture.md has a line for every module, and for every rule about imports; no other."""

import re

from docs.generate import ARCHITECTURE, PACKAGES, ROOT, import_rules, modules


def test_every_module_is_on_the_map_and_none_that_is_gone() -> None:
    there = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in modules(package)}
    mapped = set()
    for chapter in re.split(r"^### ", ARCHITECTURE.read_text(), flags=re.MULTILINE)[1:]:
        folder = chapter.partition("`")[2].partition("`")[0]
        mapped |= {f"{folder}{name}" for name in re.findall(r"^\| `(\w+\.py)` \|", chapter, re.MULTILINE)}
    assert mapped == {path for path in there if not path.endswith("__init__.py")}, "make docs"


def test_every_rule_about_imports_is_on_the_page() -> None:
    assert all(f"- {rule}\n" in ARCHITECTURE.read_text() for rule in import_rules()), "make docs"
