"""What psql says of a restore that fails: without rows, with the object that it could not make, and what to do about it.

psql adds to an error the context in which it happened (https://www.postgresql.org/docs/current/plpgsql-errors-and-messages.html, and
``errcontext`` in PostgreSQL's copyfrom.c, functions.c): the table, and the functions of its constraints and generated columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice

_MESSAGE = re.compile(r"(?:psql:.*:(?P<line>[0-9]+): )?(?:ERROR|FATAL|PANIC|WARNING|NOTICE|INFO|LOG):  ")
_FIELD = re.compile(r"(DETAIL|HINT|QUERY|CONTEXT|STATEMENT|LOCATION|LINE [0-9]+):")
# The parts of a context that hold names only; a row follows the colon.
_CONTEXT = re.compile(
    r'(?:COPY (?P<table>.+?), line [0-9]+(?:, column [^:]+)?(?=:|$)|SQL function "(?P<sql>.+)" (?:statement [0-9]+|during \w+)'
    r"|PL/\w+ function (?P<pl>.+?)(?: line [0-9]+ at [\w ]+)?$)"
)
_MISSING = re.compile(
    r"ERROR:  ((?:function|relation|type|operator|text search \w+|collation) .+? does not exist|no schema has been selected)"
)
# pg_dump's comment before each object: -- Name: t_idx; Type: INDEX; Schema: public; Owner: app
_OBJECT = re.compile(rb"-- (?:Data for )?Name: (.*); Type: (.*); Schema: (.*); Owner: ")


class WithoutRows:
    """Takes psql's messages line by line and returns what may be kept: the message itself and, of its context, names. None: nothing."""

    def __init__(self) -> None:
        self._field = "message"

    def __call__(self, line: str) -> str | None:
        """Return the line, its part that holds no row, or None."""
        field = _FIELD.match(line)
        self._field = "message" if _MESSAGE.match(line) else field[1] if field else self._field
        if self._field == "message":
            return line
        if self._field != "CONTEXT":
            return None
        matched = _CONTEXT.match(line.removeprefix("CONTEXT:  ").rstrip("\n"))
        return f"CONTEXT:  {matched[0]}\n" if matched else None


def next_step(output: str) -> str | None:
    """Return what to do about an error that an empty search_path explains, None for any other. ``output``: psql's, without rows."""
    missing = _MISSING.search(output)
    contexts = [context for line in output.splitlines() if (context := _CONTEXT.match(line.removeprefix("CONTEXT:  ")))]
    functions = [context["sql"] or context["pl"] for context in contexts if context["sql"] or context["pl"]]
    if missing is None or not functions:
        return None
    table = next((f" of table {context['table']}" for context in contexts if context["table"]), "")
    return (
        f"a restore runs with an empty search_path, and function {functions[0]}, on which a constraint, generated column or index{table} "
        f"relies, names something without its schema ({missing[1]}). No restore can work, neither this nor yours: write the schema into "
        f"the function, or ALTER FUNCTION {functions[0]} SET search_path = …; then re-run the job"
    )


def line_of_error(output: str) -> int | None:
    """Return the line of the script at which psql reported its first error."""
    errors = (_MESSAGE.match(line) for line in output.splitlines() if "ERROR:  " in line)
    return next((int(error["line"]) for error in errors if error and error["line"]), None)


def object_at(blocks: Iterable[bytes], line: int) -> str | None:
    """Return the object that a dump makes or fills at a line (from 1), as type and name, by the comments of pg_dump before it."""
    found = None
    for text in islice(_lines(blocks), line):
        if text.startswith(b"-- ") and (matched := _OBJECT.match(text)):
            name, kind, schema = (part.decode("utf-8", "backslashreplace") for part in matched.groups())
            found = f"{kind} {name}" if schema == "-" else f"{kind} {schema}.{name}"
    return found


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    partial = b""
    for block in blocks:
        *lines, partial = (partial + block).split(b"\n")
        yield from lines
