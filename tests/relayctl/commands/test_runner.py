"""What a command says when it is refused."""

from relay import errors
from relayctl.commands.exits import ExitCode
from relayctl.commands.runner import describe_failure


def test_a_refusal_says_what_to_do_unless_its_message_does() -> None:
    unknown = describe_failure(errors.RunUnknown("there is no run typo"))
    assert unknown == (f"there is no run typo. {errors.RunUnknown.remedy()}", ExitCode.REFUSED)
    assert describe_failure(errors.SpecInvalid("method: what?")) == ("method: what?", ExitCode.REFUSED)
    assert describe_failure(errors.RelayError("of a newer one")) == ("of a newer one", ExitCode.REFUSED)
