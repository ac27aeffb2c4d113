"""What can end a run, and the exit code it ends with."""

DONE, FAILED, BAD_INPUT, OUT_OF_MEMORY, STOPPED = 0, 1, 2, 3, 130


class UserError(Exception):
    """A mistake that the user can fix. The text is all they see: what, where, what was found, what to do."""

    kind = "input"  # in the error event


class NonFinite(Exception):
    """A loss or gradient is nan or infinite: the step was not taken and the last good weights are kept."""


class Stopped(BaseException):
    """The user asked to stop. Not an Exception, so that no handler of ordinary failures swallows it."""
