"""The one exception that the command line shows without a traceback."""


class GagsError(Exception):
    """Something outside the program is not as it must be: a file, a flag, a machine.

    The message names the file or flag, what was expected, what was found and what to do about it.
    """
