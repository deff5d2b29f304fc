"""Errors that a user can cause. The command line prints them as one line and exits with 2."""


class UserError(Exception):
    """Something the user can put right. The message is one line: what happened and what to do."""
