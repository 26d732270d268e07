"""The one exception a user can cause.

Every message is a single line that names what is wrong and what would be right. The entry points print it
without a traceback and leave with exit code 2; in a notebook it is an ordinary exception.
"""


class UserError(ValueError):
    """Something outside the code is wrong: a config key, a path, a file, a shape that a user passed in."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class UnreadableError(CheckpointError):
    """A file is there and cannot be read now, for a reason that says nothing about its content (``file_access``)."""
