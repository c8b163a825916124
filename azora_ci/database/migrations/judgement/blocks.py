"""The statements inside a block of PL/pgSQL, where its text alone says which they are. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from azora_ci.database.migrations.judgement import sql
from azora_ci.database.migrations.judgement.sql import Parsed

# What a block may do beside running statements: conditions, messages, ends. Their expressions are statements, too (``_expressions``).
_QUIET = frozenset({"block", "if", "raise", "return", "assign", "case", "loop", "while", "fori", "exit", "assert", "getdiag"})
_RUNS = frozenset({"execsql", "perform", "dynexecute", "fors", "call"})


def statements_of(body: str) -> list[Parsed]:
    """Return the statements that a block may run, whatever branch it takes; what its text alone does not say has ``error``."""
    import postgast

    try:
        blocks = postgast.parse_plpgsql(f"DO {_quoted(body)}")
    except (postgast.PgQueryError, json.JSONDecodeError) as error:
        return [Parsed(1, body, error=str(error))]
    return [parsed for block in blocks for kind, node in _nodes(block) for parsed in _of(kind, node)]


def _quoted(body: str) -> str:
    tag = "$block$"
    while tag in body:
        tag = f"{tag[:-1]}_$"
    return f"{tag}{body}{tag}"


def _nodes(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (kind, node) of every statement of PL/pgSQL, and every expression as ``expr``."""
    if isinstance(value, list):
        for item in value:
            yield from _nodes(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key.startswith("PLpgSQL_stmt_"):
                yield key.removeprefix("PLpgSQL_stmt_"), item
            elif key == "PLpgSQL_expr":
                yield "expr", item
            yield from _nodes(item)


def _of(kind: str, node: Any) -> list[Parsed]:
    """Return the statements of one node; for what is made while the block runs an entry with ``error``."""
    if kind == "dynexecute":
        return _constant(node["query"]["PLpgSQL_expr"]["query"])
    if kind == "expr":
        query, mode = node["query"], node.get("parseMode", 0)
        return sql.parse(query if mode == 0 else f"SELECT {query.partition(':=')[2] or query}")
    return [] if kind in _QUIET | _RUNS else [Parsed(1, kind, error=f"{kind} is not followed")]


def _constant(query: str) -> list[Parsed]:
    """Return the statements in a text literal; for any other expression an entry with ``error``."""
    (parsed,) = sql.parse(f"SELECT {query}")
    value = None if parsed.error else sql.inner(parsed.node).target_list[0].res_target.val
    if value is None or value.WhichOneof("node") != "a_const" or not value.a_const.HasField("sval"):
        return [Parsed(1, query, error="what it executes is made while it runs")]
    return sql.parse(value.a_const.sval.sval)
