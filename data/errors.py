"""The one error of this room: what the user handed in cannot be used."""


class InputError(ValueError):
    """A mistake in the user's files or options, told in one sentence.

    The sentence says what is wrong, in which file and record, and how to mend it. Whoever runs a
    command prints it without a traceback and leaves with exit code 2.
    """
