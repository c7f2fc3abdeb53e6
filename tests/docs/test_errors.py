"""docs/errors.md names every reason that the code gives, and is what the code says today."""

import ast
from collections.abc import Iterator
from pathlib import Path

from docs.generate import ERRORS, ROOT, errors_page
from relay.attempt_errors import ATTEMPT_ERRORS, BY_REASON
from relay.errors import RelayError

#: What the code calls to say why an attempt failed, with the reason as the first argument.
SAYERS = {"AttemptFault", "Cause", "Failure", "Fault", "faulted"}


def test_the_page_is_what_the_code_says() -> None:
    assert ERRORS.read_text() == errors_page(), "python docs/generate.py"


def test_every_refusal_says_what_it_means_and_what_to_do() -> None:
    for error in RelayError.__subclasses__():
        assert error.meaning() and error.remedy(), error.__name__
        assert str(error()) == error.meaning()


def test_every_reason_that_an_agent_gives_is_explained_and_no_other() -> None:
    given = {reason for path in (ROOT / "agent").rglob("*.py") for reason in reasons(path)}
    assert given == set(BY_REASON) and len(BY_REASON) == len(ATTEMPT_ERRORS)


def reasons(module: Path) -> Iterator[str]:
    """The reasons in a module: capitals, where one is handed over or stands in a table of patterns."""
    for node in ast.walk(ast.parse(module.read_text())):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in SAYERS:
                constants = (each.value for each in ast.walk(first) if isinstance(each, ast.Constant))
                yield from (value for value in constants if isinstance(value, str) and value.isupper())
            case ast.Tuple(elts=[ast.Constant(value=str(value)), ast.Call(func=ast.Attribute(attr="compile"))]):
                yield value
