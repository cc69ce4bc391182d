"""The one kind of error that is the user's to mend: a command prints its line and exits with 1."""


class UserError(Exception):
    """One clear line: what was wrong, what is allowed, how to mend it."""
