"""Markdown for step summaries and reports, in which foreign text (names, error texts) is shown and never acts as markup. Pure.

Plain strings are escaped; ``Markup`` comes from our own code and is not changed. The dialect is GitHub's
(https://github.github.com/gfm/): a pipe ends a table's cell even inside of code, and a line break ends the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ENTITIES = {"&": "&amp;", "<": "&lt;", "|": "&#124;"}
_START = re.compile(r"^(?:[#>]|[-+](?=[\s-]|$)|\d+(?=[.)](?:\s|$)))")  # would turn the line into a heading, a quotation or a list


class Markup(str):
    """One line of text that is Markdown already."""

    __slots__ = ()


def escaped(value: object) -> Markup:
    """Return a value as one line of text without active Markdown or HTML; – for None."""
    if isinstance(value, Markup):
        return value
    line = "–" if value is None else " ".join(str(value).split())
    line = re.sub(r"[\\`*\[]|(?<![^\W_])_|_(?![^\W_])|(?<!/)~", r"\\\g<0>", line)
    line = re.sub(r"[&<|]", lambda match: _ENTITIES[match[0]], line)
    return Markup(_START.sub(lambda match: f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}", line))


def code(value: object) -> Markup:
    """Return a value as code on one line, even when it holds pipes or backticks."""
    line = " ".join(str(value).split())
    return Markup(f"<code>{escaped(line)}</code>" if re.search(r"[`|]", line) or not line else f"`{line}`")


def lines(values: Iterable[object]) -> Markup:
    """Return several values below each other, for one cell of a table."""
    return Markup("<br>".join(map(escaped, values)))


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table. Line breaks inside a cell's text are kept."""
    names: list[str] = list(map(escaped, head))
    body = [names, ["---"] * len(names)]
    body += [[_cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in body)


def _cell(value: object) -> Markup:
    return escaped(value) if isinstance(value, Markup) or value is None else lines(str(value).strip().splitlines())


def listed(values: Iterable[object]) -> str:
    """Return a bulleted list with one line for each value."""
    return "\n".join(f"- {escaped(value)}" for value in values)


def fenced(block: str, language: str = "text") -> str:
    """Return a text as a code block, with a fence that is longer than any fence in the text."""
    fence = "```"
    while fence in block:
        fence += "`"
    return f"{fence}{language}\n{block or '(no text)'}\n{fence}"
