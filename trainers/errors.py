"""The errors that end an attempt with one line for the user: the run is wrong, a reward failed, or the host cannot
train.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

#: What the libraries raise about what they are given.
COMPLAINTS = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError)


class ConfigError(Exception):
    """The run file, its options, its data or its model cannot be trained on. The message is one line for the user.

    It ends the attempt without a retry (exit code 78), so it must not be raised for what another host or another minute
    may cure.
    """


class RewardError(Exception):
    """A reward function failed on a sample, or returned something that is not a number. The message names both in one
    line.
    """


class NotFiniteError(Exception):
    """The loss, a gradient or weights are NaN or infinite. The message, one line for the user, begins with
    `not finite:`, by which hosts recognise that a retry does not help.
    """


class HostError(Exception):
    """This host cannot train the run now (it has no GPU, or the Hub is out of reach). Another host or a later attempt
    may. The message is one line for the user.
    """


@contextmanager
def errors_attributed_to(part: str) -> Iterator[None]:
    """Turn a library's errors about its input into ConfigError, and those about files or packages that are missing or
    cannot be read on this host into HostError. `part` names what the user can change.
    """
    try:
        yield
    except COMPLAINTS as error:
        raise ConfigError(f"{part}: {put_in_one_line(error)}") from error
    except (ImportError, OSError, SafetensorError) as error:
        raise HostError(f"{part}: {put_in_one_line(error)}") from error


def put_in_one_line(error: Exception) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split())
