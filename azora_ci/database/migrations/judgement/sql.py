"""PostgreSQL's own parser, and what expressions and types in its tree tell. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Functions of PostgreSQL that answer alike for all rows of one statement, so that a default of them is stored once for all rows.
# pg_proc.provolatile is not "v". What is not listed is taken for volatile.
_STABLE = frozenset(
    """
    now transaction_timestamp statement_timestamp current_setting current_schema to_char to_timestamp to_date date_trunc date_part
    timezone lower upper md5 encode decode concat length jsonb_build_object jsonb_build_array json_build_object json_build_array
    array_fill make_date make_interval coalesce abs round floor ceil trim btrim ltrim rtrim replace int4range int8range numrange tsrange
    tstzrange daterange to_tsvector repeat sha256 array_length
    """.split()  # noqa: SIM905 - one name a line would fill a page
)
# Others that a migration may call without another effect than its own statement's.
HARMLESS = _STABLE | frozenset(
    """
    set_config gen_random_uuid random clock_timestamp uuid_generate_v4 nextval count max min sum avg string_agg array_agg jsonb_agg
    json_agg unnest generate_series row_number jsonb_set jsonb_array_elements jsonb_each jsonb_object_agg format split_part substring
    substr position strpos regexp_replace to_regclass to_regtype pg_typeof left right char_length quote_ident quote_literal
    gen_random_bytes uuidv4 uuidv7 lpad rpad initcap array_append array_remove extract
    """.split()  # noqa: SIM905 - as above
)
_LONGEST = 30_000
_SERIAL = {"serial", "bigserial", "smallserial", "serial2", "serial4", "serial8"}
# Expressions that are NULL where a column is NULL: a CHECK of these alone holds for rows that leave the column out.
_STRICT_KINDS = frozenset({"a_array_expr", "a_const", "a_expr", "bool_expr", "boolean", "column_ref", "float", "integer", "list", "string"})
_STRICT_KINDS |= {"type_cast", "type_name"}
_STRICT_OPERATIONS = frozenset(
    {"AEXPR_OP", "AEXPR_OP_ANY", "AEXPR_OP_ALL", "AEXPR_IN", "AEXPR_LIKE", "AEXPR_ILIKE", "AEXPR_BETWEEN", "AEXPR_NOT_BETWEEN"}
)


@dataclass(frozen=True)
class Parsed:
    """A statement of a text: the line where it begins, its text, and its node; or, in place of a node, why it cannot be parsed."""

    line: int
    text: str
    node: Any = None
    error: str = ""

    @property
    def kind(self) -> str:
        """Return the name of the node's kind, ``alter_table_stmt``."""
        return str(self.node.WhichOneof("node"))


def parse(text: str) -> list[Parsed]:
    """Return the statements of a text in order. What PostgreSQL's grammar refuses is one entry with ``error`` and no node."""
    import postgast
    from google.protobuf.message import DecodeError

    source = text.removeprefix("\ufeff").replace("\r\n", "\n")  # the line ends of Windows; inside a literal they change nothing here
    content = source.encode("utf-8", errors="replace")
    if b"\0" in content:
        return [Parsed(content.count(b"\n", 0, content.index(b"\0")) + 1, "", error="it holds a NUL byte, where PostgreSQL would stop")]
    try:
        if _longest(source) > _LONGEST:
            return [Parsed(1, source[:200], error="an expression is too long to be read here")]
        return [_placed(content, stmt.stmt_location, stmt.stmt_len or len(content), stmt.stmt) for stmt in postgast.parse(source).stmts]
    except postgast.PgQueryError as error:
        position = max(error.cursorpos - 1, 0)
        line = content.count(b"\n", 0, position) + 1
        return [Parsed(line, source.split("\n")[line - 1].strip() or source.strip(), error=error.message)]
    except DecodeError:
        return list(_one_by_one(content, postgast.split(source)))


def _one_by_one(content: bytes, texts: list[str]) -> Iterator[Parsed]:
    """Yield statements of which one has a tree that is too deep for protobuf, which bears 100 levels: that one alone is not known."""
    import postgast
    from google.protobuf.message import DecodeError

    begin = 0
    for text in texts:
        begin, length = content.index(text.encode("utf-8"), begin), len(text.encode("utf-8"))
        try:
            yield _placed(content, begin, length, postgast.parse(text).stmts[0].stmt)
        except DecodeError:
            yield _placed(content, begin, length, None, "it is nested too deeply to be read here")
        begin += length


def _longest(source: str) -> int:
    """Return the most tokens without a comma or semicolon between: from some 100,000 on the parser overflows its stack."""
    import postgast

    longest = begin = 0
    separators = {postgast.pg_query_pb2.Token.ASCII_44, postgast.pg_query_pb2.Token.ASCII_59}
    for number, token in enumerate(postgast.scan(source).tokens):
        begin = number if token.token in separators else begin
        longest = max(longest, number - begin)
    return longest


def _placed(content: bytes, begin: int, length: int, node: Any, error: str = "") -> Parsed:
    """Return a statement with the place of its first token: its location is that of the comments and spaces before it."""
    import postgast

    text = content[begin : begin + length].decode("utf-8")
    comments = {postgast.pg_query_pb2.Token.SQL_COMMENT, postgast.pg_query_pb2.Token.C_COMMENT}
    tokens = [token for token in postgast.scan(text).tokens if token.token not in comments]
    first, last = (tokens[0].start, tokens[-1].end) if tokens else (0, length)
    line = content.count(b"\n", 0, begin + first) + 1
    return Parsed(line, content[begin + first : begin + last].decode("utf-8"), node, error)


def label(enumeration: str, number: int) -> str:
    """Return the name of a value of one of the parser's enumerations, ``OBJECT_TABLE`` of ``ObjectType``."""
    import postgast

    return str(getattr(postgast.pg_query_pb2, enumeration).Name(number))


def inner(node: Any) -> Any:
    """Return what a node holds."""
    return getattr(node, node.WhichOneof("node"))


def walk(message: Any) -> Iterator[tuple[str, Any]]:
    """Yield (kind, message) of every node below a message, the outer ones first."""
    for descriptor, value in message.ListFields():
        values = value if descriptor.is_repeated else [value]
        for child in values if descriptor.message_type is not None else ():
            if child.DESCRIPTOR.name == "Node":
                if child.WhichOneof("node") is None:
                    continue
                yield child.WhichOneof("node"), inner(child)
                yield from walk(inner(child))
            else:
                yield _snake(child.DESCRIPTOR.name), child
                yield from walk(child)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def strings(nodes: Any) -> list[str]:
    """Return the texts of a list of nodes, of which only strings count: the parts of a name, columns of a key."""
    return [node.string.sval for node in nodes if node.WhichOneof("node") == "string"]


def functions(message: Any) -> list[str]:
    """Return the names of the functions that an expression or statement calls, without ``pg_catalog``."""
    return [".".join(strings(call.funcname)).removeprefix("pg_catalog.") for kind, call in walk(message) if kind == "func_call"]


def is_volatile(expression: Any) -> bool:
    """Return whether a default has another value for each row, as far as its functions are known."""
    return any(name not in _STABLE for name in functions(expression))


def is_null(expression: Any) -> bool:
    """Return whether an expression is the constant NULL, with or without a cast."""
    kind = expression.WhichOneof("node")
    if kind == "type_cast":
        return is_null(expression.type_cast.arg)
    return kind == "a_const" and bool(expression.a_const.isnull)


def holds_for_null(expression: Any) -> bool:
    """Return whether a CHECK surely holds where its columns are NULL: it is made of comparisons and has a column in each."""
    kinds = [(str(expression.WhichOneof("node")), inner(expression)), *walk(inner(expression))]
    if any(kind not in _STRICT_KINDS for kind, _ in kinds):
        return False
    comparisons = [node for kind, node in kinds if kind == "a_expr"]
    if not comparisons or any(label("A_Expr_Kind", node.kind) not in _STRICT_OPERATIONS for node in comparisons):
        return False
    return all(any(kind == "column_ref" for kind, _ in walk(node)) for node in comparisons)


def columns_in(expression: Any) -> set[str]:
    """Return the names of the columns in an expression."""
    return {strings(node.fields)[-1] for kind, node in walk(expression) if kind == "column_ref" and strings(node.fields)}


def type_of(type_name: Any) -> str:
    """Return a type as it is written, in small letters: ``varchar(20)``, ``int4``, ``numeric(10,2)``, ``text[]``, ``billing.state``."""
    name = ".".join(strings(type_name.names)).removeprefix("pg_catalog.")
    numbers = [str(node.a_const.ival.ival) for node in type_name.typmods if node.WhichOneof("node") == "a_const"]
    return name + (f"({','.join(numbers)})" if numbers else "") + "[]" * len(type_name.array_bounds)


def is_serial(type_name: Any) -> bool:
    """Return whether a type is a serial one: an integer with a sequence as its default."""
    return type_of(type_name) in _SERIAL
