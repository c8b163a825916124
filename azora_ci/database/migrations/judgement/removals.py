"""The judgement of what is dropped and renamed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from azora_ci.database.migrations.judgement import sql
from azora_ci.database.migrations.judgement.model import Action, Lock
from azora_ci.database.migrations.judgement.scope import Scope
from azora_ci.database.migrations.judgement.words import BAD, CHECKED, COPY, GOOD, LATER, NEW, OPEN, REFUSES, RENAMED, TRY, UNJUDGED, unless

_RELATIONS = frozenset(
    {"OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_FOREIGN_TABLE", "OBJECT_SEQUENCE"}
)  # what pg_class holds and applications name
_OF_TABLES = frozenset({"OBJECT_TRIGGER", "OBJECT_POLICY", "OBJECT_RULE"})
_ROWS = frozenset({"OBJECT_TABLE", "OBJECT_SCHEMA", "OBJECT_DATABASE"})


def _drop(scope: Scope, statement: Any) -> Iterator[Action]:
    kind = sql.label("ObjectType", statement.remove_type)
    what, cascade = f"DROP {kind[7:].replace('_', ' ')}", sql.label("DropBehavior", statement.behavior) == "DROP_CASCADE"
    for node in statement.objects:
        parts = parts_of(node)
        if kind in _OF_TABLES:
            table = scope.qualified(parts[:-1])
            locks = {table: Lock.ACCESS_EXCLUSIVE}
            reason = "the running version may rely on it"
            yield Action(what, *unless(scope.is_new(table), BAD, reason, LATER), locks=locks)
        elif kind == "OBJECT_INDEX":
            yield _drop_index(scope, what, scope.qualified(parts), concurrent=statement.concurrent, missing_ok=statement.missing_ok)
        else:
            yield _drop_object(scope, kind, what, parts, missing_ok=statement.missing_ok, cascade=cascade)


def parts_of(node: Any) -> list[str]:
    """Return the parts of an object's name, however the statement holds it."""
    kind = node.WhichOneof("node")
    if kind == "list":
        return sql.strings(node.list.items)
    if kind == "type_name":
        return sql.strings(node.type_name.names)
    return sql.strings(node.object_with_args.objname) if kind == "object_with_args" else sql.strings([node])


def _drop_object(scope: Scope, kind: str, what: str, parts: list[str], *, missing_ok: bool, cascade: bool) -> Action:
    is_relation = kind in _RELATIONS
    short = {"OBJECT_DOMAIN": "type", "OBJECT_PROCEDURE": "function", "OBJECT_ROUTINE": "function"}.get(kind, kind[7:].lower())
    name = parts[-1] if kind == "OBJECT_SCHEMA" else scope.qualified(parts or [""])
    own = scope.is_new(name) if is_relation else (short, name) in scope.objects
    absent = is_relation and missing_ok and scope.is_absent(name)
    along = [known for known in scope.facts.relations if kind == "OBJECT_SCHEMA" and known.startswith(f"{name}.")]
    locks = dict.fromkeys([*scope.family(name), *scope.referenced(name)] if is_relation else along, Lock.ACCESS_EXCLUSIVE)
    if is_relation:
        scope.drop(name)
    else:
        scope.drop_object(short, name)
    if absent:
        return Action(what, GOOD, f"production has no {name}")
    if own:
        return Action(what, *unless(not cascade, OPEN, "what CASCADE takes along is not known", TRY), locks=locks)
    reason = "the data is gone, and the running version may use it" if kind in _ROWS else "the running version may use it"
    return Action(what, BAD, reason, LATER, locks, loses=kind in _ROWS)


def _drop_index(scope: Scope, what: str, index: str, *, concurrent: bool, missing_ok: bool) -> Action:
    own, table = ("index", index) in scope.objects, scope.table_of(index)
    absent = missing_ok and scope.facts.known and not own and index not in scope.facts.indexes
    scope.drop_object("index", index)
    locks = {table: Lock.SHARE_UPDATE_EXCLUSIVE if concurrent else Lock.ACCESS_EXCLUSIVE} if table and not absent else {}
    if own or absent:
        return Action(what, GOOD, NEW if own else f"production has no {index}", locks=locks)
    reason = "the running version's queries may take much longer, and ON CONFLICT fails without a unique index"
    return Action(what, OPEN, reason, "DROP INDEX CONCURRENTLY in the release after the last version that needs it", locks)


def _rename(scope: Scope, statement: Any) -> Iterator[Action]:
    kind = sql.label("ObjectType", statement.rename_type)
    what = f"RENAME {kind[7:].replace('_', ' ')}"
    name = scope.name(statement.relation) if statement.relation.relname else ""
    locks = {name: Lock.ACCESS_EXCLUSIVE} if name else {}
    if kind == "OBJECT_INDEX" and name not in scope.facts.relations:
        schema = name.rpartition(".")[0]
        new_name = f"{schema}.{statement.newname}" if schema else statement.newname
        own = ("index", name) in scope.objects
        scope.indexes[new_name] = scope.table_of(name) or ""
        scope.drop_object("index", name)
        if own:
            scope.make_object("index", new_name)
        yield Action(what, GOOD, "no statement of an application names an index")
    elif kind in {"OBJECT_COLUMN", "OBJECT_ATTRIBUTE"}:
        own = scope.is_new(name) or scope.column(name, statement.subname) is not None
        scope.rename_column(name, statement.subname, statement.newname)
        locks = dict.fromkeys(scope.family(name), Lock.ACCESS_EXCLUSIVE)
        yield Action(what, *unless(own, BAD, RENAMED, COPY), locks=locks)
    elif kind == "OBJECT_TABCONSTRAINT":
        own = scope.is_new(name) or ("constraint", f"{name}.{statement.subname}") in scope.objects
        scope.drop_object("constraint", f"{name}.{statement.subname}")
        reason = "ON CONFLICT ON CONSTRAINT and what reads errors name it"
        locks = dict.fromkeys(scope.family(name), Lock.ACCESS_EXCLUSIVE)
        yield Action(what, *unless(own, OPEN, reason), locks=locks)
    elif kind in _RELATIONS or kind == "OBJECT_INDEX":
        schema = name.rpartition(".")[0]
        own = scope.is_new(name)
        scope.rename(name, f"{schema}.{statement.newname}" if schema else statement.newname)
        yield Action(what, *unless(own, BAD, RENAMED, COPY), locks=locks)
    elif kind in _OF_TABLES:
        yield Action(what, *unless(scope.is_new(name), OPEN, "what replaces it by its name does not find it"), locks=locks)
    else:
        short = {"OBJECT_DOMAIN": "type"}.get(kind, kind[7:].lower())
        parts = [statement.subname] if kind == "OBJECT_SCHEMA" else parts_of(statement.object)
        own = (short, parts[-1] if kind == "OBJECT_SCHEMA" else scope.qualified(parts or [""])) in scope.objects
        yield Action(what, *unless(own, BAD, RENAMED, COPY))


def _set_schema(scope: Scope, statement: Any) -> Iterator[Action]:
    name = scope.name(statement.relation) if statement.relation.relname else ""
    own = bool(name) and scope.is_new(name)
    if name:
        new_name = f"{statement.newschema}.{statement.relation.relname}".removeprefix("public.")
        scope.rename(name, new_name)
    locks = {name: Lock.ACCESS_EXCLUSIVE} if name else {}
    yield Action("SET SCHEMA", *unless(own, BAD, RENAMED, COPY), locks=locks)


def _alter_enum(scope: Scope, statement: Any) -> Iterator[Action]:
    own = ("type", scope.qualified(sql.strings(statement.type_name))) in scope.objects
    if statement.old_val:
        yield Action("RENAME VALUE", *unless(own, BAD, "the running version knows the old value", COPY))
    else:
        yield Action("ADD VALUE", GOOD, NEW if own else "the running version must bear to read a value that it does not know")


def _alter_domain(scope: Scope, statement: Any) -> Iterator[Action]:
    own = ("type", scope.qualified(sql.strings(statement.type_name))) in scope.objects
    judged = {"C": (BAD, REFUSES, LATER), "O": (BAD, REFUSES, LATER), "V": (GOOD, CHECKED, "")}.get(
        statement.subtype, (OPEN, UNJUDGED, TRY)
    )
    yield Action("ALTER DOMAIN", *unless(own, *judged))


JUDGES: dict[str, Callable[[Scope, Any], Iterator[Action]]] = {
    "alter_domain_stmt": _alter_domain,
    "alter_enum_stmt": _alter_enum,
    "alter_object_schema_stmt": _set_schema,
    "drop_stmt": _drop,
    "rename_stmt": _rename,
}
