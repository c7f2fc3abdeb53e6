"""What can be wrong with a run, with what a person brought along for it, or with the host."""


class ConfigError(Exception):
    """The run file, its options, data or model cannot be trained on; the message is one line for the person who
    wrote it.

    It ends the attempt unretried (exit code 78), so it is never raised for what another host or another minute may
    cure.
    """


class RewardError(Exception):
    """A reward function failed on a sample, or gave what is no number; one line that names reward and sample."""


class HostError(Exception):
    """This host cannot train the run now (no GPU, no way to the Hub); another host or minute may. One line for
    people.
    """
