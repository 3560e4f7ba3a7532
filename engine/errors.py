"""What this room raises beside the InputError of data."""


class FailedRun(RuntimeError):
    """A run that cannot go on though its input was right: bad numbers, a full disk.

    One sentence with the cause and the mend. Whoever runs a command prints it without a traceback
    and leaves with exit code 3.
    """
