"""The one exception a user is meant to see."""


class VqhpsError(Exception):
    """An expected failure: bad input, a missing file, a wrong setting.

    The message is one line for the user: what is wrong, with which value or file, and the mend. The command line
    prints it and ends with exit code 2.
    """
