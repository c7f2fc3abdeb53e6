"""Exit codes that scripts can branch on."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command of relayctl ended."""

    OK = 0
    ERROR = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4  #: not found, or refused by the coordinator
    RUN_FAILED = 10
    RUN_CANCELLED = 11
    TIMED_OUT = 12
    INTERRUPTED = 130
