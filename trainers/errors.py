"""What can be wrong with a run before it trains."""


class ConfigError(Exception):
    """The run file, its options, data or model cannot be trained on; the message is one line for the person who wrote it.

    It ends the attempt unretried (exit code 78), so it is never raised for what another host or another minute may cure.
    """
