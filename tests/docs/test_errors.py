"""docs/errors.md names every reason that the code gives, and is what the code says today."""

import ast
from collections.abc import Iterator
from pathlib import Path

from docs.generate import ERRORS, ROOT, errors_page
from relay.attempt_errors import ATTEMPT_ERRORS, BY_REASON
from relay.errors import RelayError


def test_the_page_is_what_the_code_says() -> None:
    assert ERRORS.read_text() == errors_page(), "python docs/generate.py"


def test_every_refusal_says_what_it_means_and_what_to_do() -> None:
    for error in RelayError.__subclasses__():
        assert error.meaning() and error.remedy(), error.__name__
        assert str(error()) == error.meaning()


def test_every_reason_that_an_agent_gives_is_explained_and_no_other() -> None:
    modules = [ROOT / "agent" / "errors.py", *(ROOT / "agent" / "attempt").rglob("*.py")]
    given = {reason for path in modules for reason in reasons(path)}
    assert given == set(BY_REASON) and len(BY_REASON) == len(ATTEMPT_ERRORS)


def reasons(module: Path) -> Iterator[str]:
    """The reasons in a module: words in capitals, handed over first or in a table beside a pattern."""
    for node in ast.walk(ast.parse(module.read_text())):
        match node:
            case ast.Call(func=ast.Name(), args=[first, *_]):
                constants = (each.value for each in ast.walk(first) if isinstance(each, ast.Constant))
                yield from (value for value in constants if isinstance(value, str) and value.isupper())
            case ast.Tuple(elts=[ast.Constant(value=str(value)), ast.Call(func=ast.Attribute(attr="compile"))]):
                yield value
