"""Variables of Compose: ``$X``, ``${X:-default}``, ``${X-default}``, ``${X:?error}``, ``${X:+other}``, ``$$``, nested; files of variables.

Values come from the files that Compose reads, never from the environment of whoever adopts. Pure.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dotenv.parser import parse_stream

_EXPRESSION = re.compile(r"\$(?:(?P<escaped>\$)|(?P<bare>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<operator>:?[-?+])?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_DEPTH = 20


@dataclass(frozen=True)
class Interpolated:
    """A text with its variables replaced. ``names``: all that it names; ``missing``: those with neither value nor default, replaced by
    nothing; ``only``: the variable, when the text is one expression and nothing else.
    """

    text: str
    names: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    only: str | None = None


def interpolate(text: str, variables: Mapping[str, str], depth: int = 0) -> Interpolated:
    """Return a text as Compose would read it. What is no expression, such as ``$5`` or an open ``${``, stays as it is."""
    parts: list[Interpolated] = []
    position = 0
    while match := _EXPRESSION.search(text, position):
        part, end = _expression(text, match, variables, depth)
        if match.start() > position:
            parts.append(Interpolated(text[position : match.start()]))
        parts.append(part)
        position = end
    if position < len(text):
        parts.append(Interpolated(text[position:]))
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    missing = tuple(dict.fromkeys(name for part in parts for name in part.missing))
    return Interpolated("".join(part.text for part in parts), names, missing, parts[0].only if len(parts) == 1 else None)


def _expression(text: str, match: re.Match[str], variables: Mapping[str, str], depth: int) -> tuple[Interpolated, int]:
    """Return what an expression stands for, and where it ends."""
    if match["escaped"]:
        return Interpolated("$"), match.end()
    if match["bare"]:
        return _value(match["bare"], variables.get(match["bare"])), match.end()
    end = _closing(text, match.end()) if depth < _DEPTH else None
    word = text[match.end() : end]
    if end is None or (word and not match["operator"]):
        return Interpolated(text[match.start() : match.end()]), match.end()
    name, operator = match["name"], match["operator"] or ""
    value = variables.get(name)
    given = value is not None and (value != "" or not operator.startswith(":"))
    if operator.endswith("+"):
        other = interpolate(word, variables, depth + 1) if given else Interpolated("")
        return Interpolated(other.text, (name, *other.names), other.missing), end + 1
    if operator.endswith("-") and not given:
        default = interpolate(word, variables, depth + 1)
        return Interpolated(default.text, (name, *default.names), default.missing, name), end + 1
    return _value(name, value if given else None), end + 1


def _value(name: str, value: str | None) -> Interpolated:
    return Interpolated("", (name,), (name,), name) if value is None else Interpolated(value, (name,), (), name)


def _closing(text: str, position: int) -> int | None:
    """Return where the brace closes whose content starts at ``position``; None when it does not."""
    depth = 0
    while position < len(text):
        if text.startswith("${", position):
            depth += 1
        elif text[position] == "}":
            if depth == 0:
                return position
            depth -= 1
        position += 1
    return None


def parse_file(content: str, variables: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """Return variable -> value; None for a line that only names it. Values may name variables of lines before, and ``variables``.

    The library reads the lines. What stands in single quotes stays as it is, as does a ``$`` behind a backslash; lines that are no
    assignment are left out.
    """
    values: dict[str, str | None] = {}
    known = dict(variables or {})
    for line in parse_stream(io.StringIO(content.removeprefix("\ufeff"))):
        if line.key is None or not _NAME.fullmatch(line.key):
            continue
        literal = line.original.string.partition("=")[2].lstrip().startswith("'")
        value = line.value if line.value is None or literal else interpolate(line.value.replace("\\$", "$$"), known).text
        values[line.key] = value
        if value is not None:
            known[line.key] = value
    return values
