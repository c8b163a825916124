"""Shapes of catalogues (``catalogues.sql``) with odd names, and strategies that put several into one database."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import strategies as st

ROLES = ("keeper", "Catalogue Keeper", 'with"quote', "reader;--")
WORDS = (
    "plain", "Mixed Case", 'with"quote', "with'apostrophe", "new\nline", "semi;colon", "back\\slash", "ünïcode", "名前", "select", "$a$",
    "-- comment", "/* open", "%s %I", "a.b", "long" * 13, "COPY x FROM stdin;", "trailing ", "\\.", "tab\there", "(paren", "_under", "0",
    "-- Name: x; Type: TABLE; Schema: y; Owner: z",
)  # fmt: skip

_NAME = re.compile(r"@([sabcdefrqn])")
_LITERAL = re.compile(r"'[^']*'")
_SHAPE = re.compile(r"^--- ([^\[\n]+?)(?: \[([0-9]+)\])?\n(.*?)(?=^--- |\Z)", re.MULTILINE | re.DOTALL)
_FOUND = _SHAPE.findall(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
SHAPES = {name: sql for name, _, sql in _FOUND}
OPTIONAL = {"icu collations", "xml"}  # what some builds of PostgreSQL lack
AT_LEAST = {name: int(major) for name, major, _ in _FOUND if major}


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def script(shape: str, number: int, words: tuple[str, ...], roles: tuple[str, ...]) -> str:
    """Return the SQL of a shape; ``number`` tells its names from those of other shapes."""

    def name_for(match: re.Match[str]) -> str:
        if match[1] == "n":
            return str(number)
        if match[1] in "rq":
            return quoted(roles["rq".index(match[1])])
        word = words["sabcdef".index(match[1]) % len(words)]
        return quoted(f"{match[1]}{number} {word.encode()[:50].decode(errors='ignore')}")

    def in_literal(match: re.Match[str]) -> str:
        return _NAME.sub(lambda name: name_for(name).replace("'", "''"), match[0])

    text = _NAME.sub(name_for, _LITERAL.sub(in_literal, SHAPES[shape]))
    return f"CREATE SCHEMA {_NAME.sub(name_for, '@s')}; {text};"


def catalogues(shapes: list[str], most: int = 8) -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    """Return a strategy of catalogues: of one to ``most`` of these shapes, name and SQL each."""
    words, roles = st.tuples(*[st.sampled_from(WORDS)] * 7), st.permutations(ROLES)

    @st.composite
    def catalogue(draw: st.DrawFn) -> tuple[tuple[str, str], ...]:
        chosen = draw(st.lists(st.sampled_from(shapes), min_size=1, max_size=most))
        return tuple((name, script(name, number, draw(words), tuple(draw(roles)))) for number, name in enumerate(chosen, 1))

    return catalogue()
