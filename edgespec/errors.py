"""Errors that a user can cause. The command line prints them as one line and exits with 2."""


class UserError(Exception):
    """An error that the user can fix. The message is one line: what happened and what to do."""
