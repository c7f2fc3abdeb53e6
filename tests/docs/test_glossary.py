"""docs/glossary.md explains the words that Relay has made its own, and each of its links leads somewhere."""

import re

from tests.docs.page import PAGES

#: Words of Relay's own: everything else is said in the field's terms.
KEPT = (
    *("lease", "lapse", "place", "head", "curve", "attempt", "spool", "cursor", "shim", "fencing"),
    *("host", "agent", "store", "artifact"),
)


def test_every_word_of_our_own_is_explained_once() -> None:
    words = re.findall(r"^### (.+)$", (PAGES / "glossary.md").read_text(), re.MULTILINE)
    assert set(KEPT) <= set(words) and len(set(words)) == len(words)


def test_each_explanation_is_short() -> None:
    for entry in re.split(r"^### ", (PAGES / "glossary.md").read_text(), flags=re.MULTILINE)[1:]:
        word, _, text = entry.partition("\n")
        assert 1 <= len(re.findall(r"[.:](?=\s|$)", text.partition("\n## ")[0])) <= 5, word
