"""Requests that went wrong at an edge, as its log tells of them, in words for people. Pure.

Methods and paths are written by users: what cannot be printed is replaced, and both are cut, so that no text of theirs acts on a terminal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

USERS, OURS, CALL = "user", "ours", "call"  # kinds of requests: of users, our own, and of one service to another
LONGEST = {"method": 16, "path": 200}  # characters
GIVEN_UP = "given up"  # the reason of a request whose user left before an answer came
NO_ANSWER = 0  # the status of a request without an answer


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A request that failed, was given up, refused, or slow. ``release``: id of the release that was chosen for it, "" for none.

    ``time``: RFC 3339 with milliseconds; ``instance``: ``host:port`` that was asked last, "" for none; ``host``: that of the edge, "" where
    there is only one; ``status``: 0 without an answer; ``helped``: another attempt or the other release gave the answer.
    """

    time: str
    service: str
    release: str
    kind: str
    method: str
    path: str
    status: int
    reason: str
    milliseconds: int
    attempts: int = 0
    instance: str = ""
    host: str = ""
    helped: bool = field(default=False)

    def __post_init__(self) -> None:
        for name, longest in LONGEST.items():
            object.__setattr__(self, name, printable(getattr(self, name), longest))

    @property
    def words(self) -> str:
        """Return how the request ended, with the time for one that was given up."""
        return f"{self.reason} after {self.milliseconds / 1000:.1f} s" if self.reason == GIVEN_UP else self.reason

    def line(self, instance: str) -> str:
        """Return the request as one line; ``instance``: the name of what was asked last."""
        return f"{self.time} {self.method} {self.path}: {self.status or 'no answer'}, {self.words} ({self.milliseconds} ms, {instance})"


def printable(text: str, longest: int) -> str:
    """Return a text of users without line breaks, escapes and other characters that cannot be seen, of at most ``longest`` characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:longest])
