"""Errors that a user can cause. The command line prints them as one line and exits with 2."""


class UserError(Exception):
    """An error that the user can fix. The message is one line: what happened and what to do."""


class EngineBusy(UserError):
    """The engine runs another answer, which the message names, and this call cannot wait for it."""


class EngineClosed(UserError):
    """The engine has been closed, its program ends, or it belongs to the process before a fork."""
