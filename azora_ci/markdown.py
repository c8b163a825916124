"""Markdown for step summaries and reports, in which what others said (names, error texts) is shown and never takes effect. Pure.

Plain strings are escaped; ``Markup`` is what our own code made, and stands as it is. The dialect is GitHub's
(https://github.github.com/gfm/): a pipe ends a table's cell even inside of code, and a line break ends the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ENTITIES = {"&": "&amp;", "<": "&lt;", "|": "&#124;"}
_START = re.compile(r"^(?:[#>]|[-+](?=[\s-]|$)|\d+(?=[.)](?:\s|$)))")  # would make a heading, a quotation or a list of the line


class Markup(str):
    """Text that is Markdown already, on one line."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """Return a value as text on one line in which nothing is a command of Markdown or HTML; None is –."""
    if isinstance(value, Markup):
        return value
    line = "–" if value is None else " ".join(str(value).split())
    line = re.sub(r"[\\`*\[]|(?<![^\W_])_|_(?![^\W_])|(?<!/)~", r"\\\g<0>", line)
    line = re.sub(r"[&<|]", lambda found: _ENTITIES[found[0]], line)
    return Markup(_START.sub(lambda found: f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}", line))


def code(value: object) -> Markup:
    """Return a value as code on one line, also where it holds pipes and backticks."""
    line = " ".join(str(value).split())
    return Markup(f"<code>{escaped(line)}</code>" if re.search(r"[`|]", line) or not line else f"`{line}`")


def lines(values: Iterable[object]) -> Markup:
    """Return several values under each other, in one cell."""
    return Markup("<br>".join(map(escaped, values)))


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table; the lines of a cell's text stay lines."""
    names: list[str] = list(map(escaped, head))
    body = [names, ["---"] * len(names)]
    body += [[_cell(one) for one in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in body)


def _cell(value: object) -> Markup:
    return escaped(value) if isinstance(value, Markup) or value is None else lines(str(value).strip().splitlines())


def listed(values: Iterable[object]) -> str:
    """Return a list, one line a value."""
    return "\n".join(f"- {escaped(one)}" for one in values)


def fenced(block: str, language: str = "text") -> str:
    """Return a text as a code block that nothing inside it can end."""
    fence = "```"
    while fence in block:
        fence += "`"
    return f"{fence}{language}\n{block or '(no text)'}\n{fence}"
