"""The judgement of every statement but ALTER TABLE. Locks: PostgreSQL's manual, "Explicit Locking", and tests that trace them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from azora_ci.database.migrations.judgement import removals, rows, sql
from azora_ci.database.migrations.judgement.alter import alter_table
from azora_ci.database.migrations.judgement.blocks import statements_of
from azora_ci.database.migrations.judgement.model import Action, Lock
from azora_ci.database.migrations.judgement.scope import Scope
from azora_ci.database.migrations.judgement.sql import Parsed
from azora_ci.database.migrations.judgement.words import ADDED, BAD, COPY, GOOD, NEW, OPEN, TRY, UNJUDGED, unless

_CHANGE_ROWS = frozenset({"insert_stmt", "update_stmt", "delete_stmt", "merge_stmt"})
_HOLD_OTHERS = _CHANGE_ROWS | {"select_stmt", "create_table_as_stmt", "copy_stmt"}  # those in WITH run, too
_ADDS_ONLY = {  # statements that add something, or change nothing that an application sees
    "create_extension_stmt", "create_enum_stmt", "composite_type_stmt", "create_range_stmt", "create_schema_stmt", "create_seq_stmt",
    "create_role_stmt", "comment_stmt", "constraints_set_stmt", "variable_show_stmt", "check_point_stmt", "notify_stmt",
    "create_am_stmt", "create_fdw_stmt", "create_foreign_server_stmt", "create_user_mapping_stmt", "create_op_class_stmt",
    "create_op_family_stmt", "create_plang_stmt", "define_stmt", "create_stats_stmt", "create_conversion_stmt",
    "create_transform_stmt", "create_table_space_stmt", "discard_stmt", "create_foreign_table_stmt", "listen_stmt", "unlisten_stmt",
}  # fmt: skip


def judge(scope: Scope, parsed: Parsed) -> Iterator[Action]:
    """Yield the actions of a statement, and note in the scope what it makes. What is not known is *unknown*."""
    kind = parsed.kind
    statement = sql.inner(parsed.node)
    if kind in _HOLD_OTHERS:
        for inner_kind, node in sql.walk(statement):
            if inner_kind in _CHANGE_ROWS:
                yield from _JUDGES[inner_kind](scope, node)
    if kind in _JUDGES:
        yield from _JUDGES[kind](scope, statement)
    elif kind in _ADDS_ONLY:
        yield from _adds(scope, kind, statement)
    else:
        yield Action(_title(kind), OPEN, UNJUDGED, TRY)


def _title(kind: str) -> str:
    return kind.removesuffix("_stmt").replace("_", " ").upper()


# --- what is made ---------------------------------------------------------------------------------------------------------


def _adds(scope: Scope, kind: str, statement: Any) -> Iterator[Action]:
    locks: dict[str, Lock] = {}
    if kind in {"create_enum_stmt", "create_range_stmt"}:
        scope.make_object("type", scope.qualified(sql.strings(statement.type_name)))
    elif kind == "composite_type_stmt":
        scope.make_object("type", scope.name(statement.typevar))
    elif kind == "create_schema_stmt":
        scope.make_object("schema", statement.schemaname, may_exist=statement.if_not_exists)
        before, scope.schema = scope.schema, statement.schemaname
        for element in statement.schema_elts:
            yield from judge(scope, Parsed(0, "", element))
        scope.schema = before
    elif kind == "create_seq_stmt":
        scope.make(scope.name(statement.sequence), may_exist=statement.if_not_exists)
    elif kind == "create_foreign_table_stmt":
        scope.make(scope.name(statement.base_stmt.relation), may_exist=statement.base_stmt.if_not_exists)
    elif kind == "define_stmt" and statement.replace:
        yield Action("CREATE OR REPLACE", OPEN, "what the running version may call is another", COPY)
        return
    elif kind == "create_stats_stmt":
        locks = dict.fromkeys([scope.name(node.range_var) for node in statement.relations], Lock.SHARE_UPDATE_EXCLUSIVE)
    elif kind == "comment_stmt":
        locks = dict.fromkeys(_commented(scope, statement), Lock.SHARE_UPDATE_EXCLUSIVE)
    yield Action(_title(kind), GOOD, ADDED, locks=locks)


def _commented(scope: Scope, statement: Any) -> list[str]:
    kind = sql.label("ObjectType", statement.objtype)
    parts = sql.strings(statement.object.list.items)
    below = {"OBJECT_COLUMN", "OBJECT_TABCONSTRAINT", "OBJECT_TRIGGER", "OBJECT_POLICY", "OBJECT_RULE"}
    if kind in {"OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_FOREIGN_TABLE"} | below and parts:
        return [scope.qualified(parts[:-1] if kind in below else parts)]
    return []


def _create_table(scope: Scope, statement: Any) -> Iterator[Action]:
    temporary = statement.relation.relpersistence == "t"
    if temporary:
        scope.temporary.add(statement.relation.relname)
    table = scope.name(statement.relation)
    locks: dict[str, Lock] = {}
    for constraint in (node for kind, node in sql.walk(statement) if kind == "constraint" and node.HasField("pktable")):
        locks[scope.name(constraint.pktable)] = Lock.SHARE_ROW_EXCLUSIVE
    points = bool(set(locks) - {table})
    partition = statement.HasField("partbound")
    for parent in statement.inh_relations:
        lock = Lock.ACCESS_EXCLUSIVE if partition else Lock.SHARE_UPDATE_EXCLUSIVE
        locks |= dict.fromkeys([scope.name(parent.range_var)], lock)
    known = table in scope.freed
    scope.make(table, may_exist=statement.if_not_exists and not temporary)
    locks.pop(table, None)
    reason = "the running version knew a table of this name" if known else ADDED
    if points and not known:
        reason += "; rows that point to others keep the running version from deleting those"
    yield Action("CREATE TABLE", GOOD, reason, locks=locks)


def _create_table_as(scope: Scope, statement: Any) -> Iterator[Action]:
    if statement.into.rel.relpersistence == "t":
        scope.temporary.add(statement.into.rel.relname)
    scope.make(scope.name(statement.into.rel), may_exist=statement.if_not_exists)
    yield rows.called(statement.query, Action("CREATE TABLE AS", GOOD, ADDED))


def _create_view(scope: Scope, statement: Any) -> Iterator[Action]:
    view = scope.name(statement.view)
    if statement.replace and not scope.is_new(view) and not scope.is_absent(view):
        locks = {view: Lock.ACCESS_EXCLUSIVE}
        yield Action("CREATE OR REPLACE VIEW", OPEN, "the running version may read it, and it may show something else", COPY, locks)
        return
    scope.make(view, may_exist=False)
    yield Action("CREATE VIEW", GOOD, ADDED)


def _create_function(scope: Scope, statement: Any) -> Iterator[Action]:
    name = scope.qualified(sql.strings(statement.funcname))
    if statement.replace and ("function", name) not in scope.objects:
        yield Action("CREATE OR REPLACE FUNCTION", OPEN, "the running version or a trigger may call it, and its body is another", COPY)
        return
    scope.make_object("function", name)
    yield Action("CREATE FUNCTION", GOOD, "it is only defined here; what it does is not judged until a statement calls it")


def _create_publication(scope: Scope, statement: Any) -> Iterator[Action]:
    tables = [node.publication_obj_spec.pubtable.relation for node in statement.pubobjects]
    locks = dict.fromkeys([scope.name(table) for table in tables if table.relname], Lock.SHARE_UPDATE_EXCLUSIVE)
    reason = "the running version can no more update or delete rows of a published table without a replica identity"
    yield Action("CREATE PUBLICATION", OPEN, reason, "give each table a primary key or REPLICA IDENTITY FULL first", locks)


def _create_domain(scope: Scope, statement: Any) -> Iterator[Action]:
    name = scope.qualified(sql.strings(statement.domainname))
    scope.make_object("type", name)
    if any(sql.label("ConstrType", node.constraint.contype) in {"CONSTR_CHECK", "CONSTR_NOTNULL"} for node in statement.constraints):
        scope.make_object("domain", name)
    yield Action("CREATE DOMAIN", GOOD, ADDED)


def _create_index(scope: Scope, statement: Any) -> Iterator[Action]:
    table, columns = scope.name(statement.relation), [node.index_elem.name for node in statement.index_params]
    schema = table.rpartition(".")[0]
    index = f"{schema}.{statement.idxname}" if schema else statement.idxname
    if statement.if_not_exists and index in scope.facts.indexes:
        yield Action("CREATE INDEX IF NOT EXISTS", GOOD, "production has it already", locks={table: _index_lock(statement)})
        return
    scope.make_object("index", index, may_exist=statement.if_not_exists)
    scope.indexes[index] = table
    names = frozenset(scope.family(table))
    what = f"CREATE {'UNIQUE ' * statement.unique}INDEX{' CONCURRENTLY' * statement.concurrent}"
    verdict, reason, instead = GOOD, NEW if scope.is_new(table) else ADDED, ""
    if not statement.concurrent and not scope.is_new(table):
        instead = "CREATE INDEX CONCURRENTLY, alone in a migration"
    if statement.unique and not scope.is_new(table):
        if scope.unused(table, columns) and not statement.nulls_not_distinct:
            reason = "the running version leaves its columns empty, which is borne any number of times"
        else:
            verdict, reason = BAD, "writes of the running version that it refuses fail, and so does it on rows that are there"
            instead = "correct the rows and both versions first, then CREATE UNIQUE INDEX CONCURRENTLY"
    yield Action(what, verdict, reason, instead, dict.fromkeys(names, _index_lock(statement)), scans=names)


def _index_lock(statement: Any) -> Lock:
    return Lock.SHARE_UPDATE_EXCLUSIVE if statement.concurrent else Lock.SHARE


def _create_trigger(scope: Scope, statement: Any) -> Iterator[Action]:
    yield _on_table(
        scope, statement.relation, "CREATE TRIGGER", Lock.SHARE_ROW_EXCLUSIVE, "it changes what the running version's writes do"
    )


def _create_rule(scope: Scope, statement: Any) -> Iterator[Action]:
    reason = "it changes what the running version's statements do"
    yield _on_table(scope, statement.relation, "CREATE RULE", Lock.ACCESS_EXCLUSIVE, reason)


def _create_policy(scope: Scope, statement: Any) -> Iterator[Action]:
    reason = "where row level security is on, it changes what the running version sees and may write"
    yield _on_table(scope, statement.table, "POLICY", Lock.ACCESS_EXCLUSIVE, reason)


def _on_table(scope: Scope, relation: Any, what: str, lock: Lock, reason: str) -> Action:
    table = scope.name(relation)
    return Action(what, *unless(scope.is_new(table), OPEN, reason, TRY), {table: lock})


# --- statements that hold others ---------------------------------------------------------------------------------------------


def _select(scope: Scope, statement: Any) -> Iterator[Action]:
    locks: dict[str, Lock] = {}
    for _, clause in ((kind, node) for kind, node in sql.walk(statement) if kind == "locking_clause"):
        named = [scope.name(node.range_var) for node in clause.locked_rels] or [
            scope.name(node) for kind, node in sql.walk(statement) if kind == "range_var"
        ]
        locks |= dict.fromkeys(named, Lock.ROW_SHARE)
    if statement.HasField("into_clause"):
        scope.make(scope.name(statement.into_clause.rel), may_exist=False)
    yield rows.called(statement, Action("SELECT", GOOD, "it only reads", locks=locks))


def _readable(scope: Scope, statement: Any) -> Iterator[Action]:
    language = next((node.def_elem.arg.string.sval for node in statement.args if node.def_elem.defname == "language"), "plpgsql")
    body = next((node.def_elem.arg.string.sval for node in statement.args if node.def_elem.defname == "as"), "")
    inside = statements_of(body) if language == "plpgsql" else [Parsed(1, body, error=f"it is in {language}")]
    known = set(scope.made), set(scope.objects), dict(scope.columns)
    for parsed in inside:
        if parsed.error:
            yield Action("DO", OPEN, f"what its block runs cannot be read here: {parsed.error}", TRY)
        else:
            yield from judge(scope, parsed)
        made, objects, columns = known  # a branch that is not taken, or an exception, makes nothing
        scope.made, scope.objects, scope.columns = set(made), set(objects), dict(columns)
    if not inside:
        yield Action("DO", GOOD, "its block runs no statement")


_JUDGES: dict[str, Callable[[Scope, Any], Iterator[Action]]] = {
    **removals.JUDGES,
    **rows.JUDGES,
    "alter_table_stmt": alter_table,
    "alter_policy_stmt": _create_policy,
    "create_domain_stmt": _create_domain,
    "create_function_stmt": _create_function,
    "create_policy_stmt": _create_policy,
    "create_publication_stmt": _create_publication,
    "create_stmt": _create_table,
    "create_table_as_stmt": _create_table_as,
    "create_trig_stmt": _create_trigger,
    "do_stmt": _readable,
    "index_stmt": _create_index,
    "rule_stmt": _create_rule,
    "select_stmt": _select,
    "view_stmt": _create_view,
}
