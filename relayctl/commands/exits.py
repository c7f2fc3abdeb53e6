"""How commands end: exit codes that scripts can branch on, and the errors that choose one."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of relayctl."""

    OK = 0
    ERROR = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4  #: not found, or refused by the coordinator
    RUN_FAILED = 10
    RUN_CANCELLED = 11
    TIMED_OUT = 12
    INTERRUPTED = 130


class UsageMistake(Exception):
    """The command line asks for something that makes no sense; the message says what would."""
