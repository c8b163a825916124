"""Variables of Compose: ``$X``, ``${X:-default}``, ``${X-default}``, ``${X:?error}``, ``${X:+other}``, ``$$``, nested; files of variables.

Values come from the files that Compose reads, never from the environment of whoever adopts. Pure.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from dotenv.parser import parse_stream

from azora_ci.core.errors import BadInputError

_EXPRESSION = re.compile(r"\$(?:(?P<escaped>\$)|(?P<bare>[A-Za-z_][A-Za-z0-9_]*)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<operator>:?[-?+])?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_DEPTH = 20
_TEXT = 64 * 1024  # characters that variables may make of one text
_TEXTS = 1024 * 1024  # and of all lines of one file


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
    """Return a text as Compose would read it. What is no expression, such as ``$5`` or an open ``${``, stays as it is.

    Raises BadInputError when variables make it longer than anything that a program could be given.
    """
    parts: list[Interpolated] = []
    position = 0
    closings = _closings(text) if depth < _DEPTH else {}
    while match := _EXPRESSION.search(text, position):
        part, end = _expression(text, match, variables, closings.get(match.start()), depth)
        if match.start() > position:
            parts.append(Interpolated(text[position : match.start()]))
        parts.append(part)
        position = end
    if position < len(text):
        parts.append(Interpolated(text[position:]))
    names = tuple(dict.fromkeys(name for part in parts for name in part.names))
    missing = tuple(dict.fromkeys(name for part in parts for name in part.missing))
    bounded(sum(len(part.text) for part in parts) if names else 0, names)
    return Interpolated("".join(part.text for part in parts), names, missing, parts[0].only if len(parts) == 1 else None)


def bounded(count: int, names: Iterable[str], limit: int = _TEXT) -> None:
    """Raise BadInputError for more characters than variables may make."""
    if count > limit:
        raise BadInputError(
            "Variables make too long a text",
            what=f"{', '.join(names)[:200]} make {count} characters, and at most {limit} are read",
            where="the files of variables, compose files and Dockerfiles",
            next_step="write a shorter value",
        )


def _expression(text: str, match: re.Match[str], variables: Mapping[str, str], end: int | None, depth: int) -> tuple[Interpolated, int]:
    """Return what an expression stands for, and where it ends. ``end``: where its brace closes, None when it does not."""
    if match["escaped"]:
        return Interpolated("$"), match.end()
    if match["bare"]:
        return _value(match["bare"], variables.get(match["bare"])), match.end()
    word = text[match.end() : end] if end is not None else ""
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


def _closings(text: str) -> dict[int, int]:
    """Return where ``${`` stands -> where its brace closes."""
    opened: list[int] = []
    closings: dict[int, int] = {}
    for match in re.finditer(r"\$\{|\}", text):
        if match[0] != "}":
            opened.append(match.start())
        elif opened:
            closings[opened.pop()] = match.start()
    return closings


def read_lines(content: str, variables: Mapping[str, str]) -> Iterator[tuple[str, Interpolated | None]]:
    """Yield variables and values, with the names of all that a value is made of; None for a line that only names a variable.

    Values may name variables of lines before, and ``variables``. The library reads the lines. What stands in single quotes stays as it
    is, as does a ``$`` behind a backslash; lines that are no assignment are left out.
    """
    known = dict(variables)
    made_of: dict[str, tuple[str, ...]] = {}
    count = 0
    for line in parse_stream(io.StringIO(content.removeprefix("\ufeff"))):
        if line.key is None or not _NAME.fullmatch(line.key):
            continue
        literal = line.original.string.partition("=")[2].lstrip().startswith("'")
        if line.value is None:
            yield line.key, None
            continue
        value = Interpolated(line.value) if literal else interpolate(line.value.replace("\\$", "$$"), known)
        names = tuple(dict.fromkeys(other for name in value.names for other in (name, *made_of.get(name, ()))))
        count += len(value.text) if names else 0
        bounded(count, [line.key], _TEXTS)
        known[line.key], made_of[line.key] = value.text, names
        yield line.key, Interpolated(value.text, names)
