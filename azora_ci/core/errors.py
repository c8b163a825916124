"""The errors of this project. The exit code is an attribute of the class.

0 done, 1 the checked condition is not true, 2 bad input or configuration, 3 an outside system could not be reached, 4 a bug.
"""

from __future__ import annotations


class Explained(BaseException):
    """An error that a person can act on: what happened, where, and what to do next.

    ``title`` is a short headline; ``what`` states the fact with its numbers; ``where`` names the variable, file, URL or
    object; ``next_step`` says what the reader can do. No field may hold a secret.
    """

    exit_code = 4

    def __init__(self, title: str, *, what: str, where: str, next_step: str) -> None:
        super().__init__(f"{title}: {what}")
        self.title = title
        self.what = what
        self.where = where
        self.next_step = next_step

    def message(self) -> str:
        """Return the text for an annotation, the summary and the log: what, where and what to do next."""
        return f"{self.what}\nWhere: {self.where}\nNext: {self.next_step}"


class AzoraError(Explained, Exception):
    """A failure with an explanation: base class of all errors except cancellation."""


class NotTrueError(AzoraError):
    """The checked condition is not true: a gate is closed, a probe failed, a rollback happened. Exit code 1."""

    exit_code = 1


class CancelledError(Explained):
    """The run was cancelled (SIGINT or SIGTERM). Exit code 1, status ``cancelled``.

    The signal handler raises it at any point of the job. It is not an ``Exception``, as KeyboardInterrupt is not: a library that
    catches every Exception (botocore does, around each request) must not swallow a cancellation and go on.
    """

    exit_code = 1


class BadInputError(AzoraError):
    """Input or configuration cannot be used. Exit code 2."""

    exit_code = 2


class UnreachableError(AzoraError):
    """An outside system could not be reached or did not answer as its protocol says. Exit code 3."""

    exit_code = 3
