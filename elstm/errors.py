"""The one kind of error that is the user's to mend: a command prints its line and exits with 1."""


class UserError(Exception):
    """One clear line: what was wrong, what is allowed, how to mend it."""


class OtherProcessError(Exception):
    """Another process of the job failed first, and has said so.

    Args:
        summary: its number and its error, in a line.
        details: its traceback.
    """

    def __init__(self, summary: str, details: str) -> None:
        super().__init__(summary)
        self.details = details
