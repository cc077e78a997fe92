"""The error that a person's mistake raises."""


class UserError(Exception):
    """A mistake of the person at the command line, not of the program.

    The message is one line that names the culprit and the remedy. The verbs of `launch` print it
    without a traceback and exit with status 2.
    """

    def __str__(self) -> str:
        # Names of files and values of fields may hold line ends.
        return super().__str__().replace("\r", "\\r").replace("\n", "\\n")
