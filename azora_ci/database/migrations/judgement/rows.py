"""The judgement of what changes rows, and of maintenance, sessions and rights. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from azora_ci.database.migrations.judgement import sql
from azora_ci.database.migrations.judgement.model import Action, Lock
from azora_ci.database.migrations.judgement.scope import Scope
from azora_ci.database.migrations.judgement.words import ADDED, BAD, GOOD, LATER, NEW, OPEN, TRY, UNJUDGED, unless

_CHANGES = "rows that the running version relies on may change"


def called(statement: Any, action: Action) -> Action:
    """Return the action, unless the statement calls a function that may do anything."""
    unknown = sorted({name for name in sql.functions(statement) if name not in sql.HARMLESS})
    if unknown and action.verdict is not BAD:
        return Action(action.what, OPEN, f"it calls {', '.join(unknown)}, whose work is not judged", TRY, action.locks, loses=action.loses)
    return action


def _insert(scope: Scope, statement: Any) -> Iterator[Action]:
    table = scope.name(statement.relation)
    updates = sql.label("OnConflictAction", statement.on_conflict_clause.action) == "ONCONFLICT_UPDATE"
    judged = (OPEN, _CHANGES, TRY) if updates else (GOOD, "it only adds rows", "")
    yield called(statement, Action("INSERT", *unless(scope.is_new(table), *judged), {table: Lock.ROW_EXCLUSIVE}))


def _update(scope: Scope, statement: Any) -> Iterator[Action]:
    table, targets = scope.name(statement.relation), [node.res_target.name for node in statement.target_list]
    own = scope.is_new(table) or all(scope.column(table, name) is not None for name in targets)
    every, advice = not statement.HasField("where_clause"), "write them in batches, each in a transaction of its own"
    locks = dict.fromkeys(scope.family(table), Lock.ROW_EXCLUSIVE)
    what = "UPDATE of every row" if every else "UPDATE"
    reason = NEW if own else "the running version may rely on the values that are there"
    if every and not scope.is_new(table):
        reason += "; every row stays locked for writers until this migration ends"
    yield called(statement, Action(what, GOOD if own else OPEN, reason, advice if every else "", locks))


def _delete(scope: Scope, statement: Any) -> Iterator[Action]:
    table, every = scope.name(statement.relation), not statement.HasField("where_clause")
    locks = dict.fromkeys(scope.family(table) if statement.relation.inh else [table], Lock.ROW_EXCLUSIVE)
    gone = (BAD, "every row is gone: there is no WHERE", LATER) if every else (OPEN, "the running version may use the rows that go", TRY)
    own = scope.is_new(table)
    yield called(statement, Action("DELETE", *unless(own, *gone), locks, loses=every and not own))


def _merge(scope: Scope, statement: Any) -> Iterator[Action]:
    table = scope.name(statement.relation)
    yield called(statement, Action("MERGE", *unless(scope.is_new(table), OPEN, _CHANGES, TRY), {table: Lock.ROW_EXCLUSIVE}))


def _truncate(scope: Scope, statement: Any) -> Iterator[Action]:
    for node in statement.relations:
        names = scope.family(scope.name(node.range_var))
        if sql.label("DropBehavior", statement.behavior) == "DROP_CASCADE":
            names += [known.table for known in scope.facts.constraints if known.references in names and known.table not in names]
        own = all(map(scope.is_new, names))
        locks, rewritten = dict.fromkeys(names, Lock.ACCESS_EXCLUSIVE), frozenset(names)
        yield Action("TRUNCATE", *unless(own, BAD, "every row is gone", LATER), locks, rewritten, loses=not own)


def _copy(scope: Scope, statement: Any) -> Iterator[Action]:
    table = scope.name(statement.relation) if statement.relation.relname else ""
    if statement.is_from and not statement.is_program:
        yield Action("COPY", GOOD, NEW if scope.is_new(table) else "it only adds rows", locks={table: Lock.ROW_EXCLUSIVE})
    elif statement.is_program or statement.HasField("query"):
        yield Action("COPY", OPEN, UNJUDGED, TRY)
    else:
        yield Action("COPY", GOOD, "it only reads")


# --- maintenance, sessions, rights ------------------------------------------------------------------------------------------


def _options(statement: Any) -> set[str]:
    return {node.def_elem.defname for node in statement}


def _vacuum(scope: Scope, statement: Any) -> Iterator[Action]:
    names = [scope.name(node.vacuum_relation.relation) for node in statement.rels]
    full = "full" in _options(statement.options)
    lock = Lock.ACCESS_EXCLUSIVE if full else Lock.SHARE_UPDATE_EXCLUSIVE
    what = ("VACUUM FULL" if full else "VACUUM") if statement.is_vacuumcmd else "ANALYZE"
    yield Action(what, GOOD, "the same rows", locks=dict.fromkeys(names, lock), rewrites=frozenset(names) if full else frozenset())


def _cluster(scope: Scope, statement: Any) -> Iterator[Action]:
    name = scope.name(statement.relation)
    yield Action("CLUSTER", GOOD, "the same rows", locks={name: Lock.ACCESS_EXCLUSIVE}, rewrites=frozenset({name}))


def _reindex(scope: Scope, statement: Any) -> Iterator[Action]:
    concurrent = "concurrently" in _options(statement.params)
    name: str | None = scope.name(statement.relation) if statement.relation.relname else None
    if name and sql.label("ReindexObjectType", statement.kind) == "REINDEX_OBJECT_INDEX":
        name = scope.table_of(name)
    lock = Lock.SHARE_UPDATE_EXCLUSIVE if concurrent else Lock.SHARE
    locks, advice = {name: lock} if name else {}, "" if concurrent else "REINDEX CONCURRENTLY"
    reason = "the same rows" if concurrent else "the same rows; queries that may use the index wait, too"
    yield Action("REINDEX", GOOD, reason, advice, locks, scans=frozenset(locks))


def _refresh(scope: Scope, statement: Any) -> Iterator[Action]:
    name = scope.name(statement.relation)
    lock = Lock.EXCLUSIVE if statement.concurrent else Lock.ACCESS_EXCLUSIVE
    rewrites = frozenset() if statement.concurrent else frozenset({name})
    yield Action("REFRESH MATERIALIZED VIEW", GOOD, "it shows what its query shows now", locks={name: lock}, rewrites=rewrites)


def _lock(scope: Scope, statement: Any) -> Iterator[Action]:
    names = [child for node in statement.relations for child in scope.family(scope.name(node.range_var))]
    yield Action(
        "LOCK TABLE", GOOD, "only until the transaction ends", locks=dict.fromkeys(names, Lock(statement.mode)), scans=frozenset(names)
    )


def _set(scope: Scope, statement: Any) -> Iterator[Action]:
    if statement.name == "search_path":
        first = next((node.a_const.sval.sval for node in statement.args), "public")
        scope.schema = first.replace('"$user"', "public") or "public"
    yield Action("SET", GOOD, "it is this session's own setting")


def _transaction(scope: Scope, statement: Any) -> Iterator[Action]:
    kind = sql.label("TransactionStmtKind", statement.kind).removeprefix("TRANS_STMT_")
    if "ROLLBACK" in kind:
        scope.made.clear()
        scope.objects.clear()
        scope.columns.clear()
        yield Action(kind, OPEN, "what stood before it is not made, or is", "take it out of the migration")
    else:
        yield Action(kind, GOOD, "it begins or ends a transaction")


def _grant_role(scope: Scope, statement: Any) -> Iterator[Action]:  # noqa: ARG001 - as its neighbours are called
    judged = (GOOD, "more is allowed", "") if statement.is_grant else (BAD, "the running version may need the right", LATER)
    yield Action("GRANT" if statement.is_grant else "REVOKE", *judged)


def _grant(scope: Scope, statement: Any) -> Iterator[Action]:
    if statement.is_grant:
        yield from _grant_role(scope, statement)
    else:
        names = [scope.name(node.range_var) for node in statement.objects if node.WhichOneof("node") == "range_var"]
        own = bool(names) and all(map(scope.is_new, names))
        yield Action("REVOKE", *unless(own, BAD, "the running version may need the right", LATER))


def _alter_sequence(scope: Scope, statement: Any) -> Iterator[Action]:
    name = scope.name(statement.sequence)
    harmless = scope.is_new(name) or _options(statement.options) <= {"owned_by", "cache"}
    locks = {name: Lock.SHARE_ROW_EXCLUSIVE}
    reason = "the running version takes its next values from it"
    yield Action("ALTER SEQUENCE", *((GOOD, ADDED, "") if harmless else (OPEN, reason, "make sure that no value comes twice")), locks=locks)


JUDGES: dict[str, Callable[[Scope, Any], Iterator[Action]]] = {
    "alter_seq_stmt": _alter_sequence,
    "cluster_stmt": _cluster,
    "copy_stmt": _copy,
    "delete_stmt": _delete,
    "grant_stmt": _grant,
    "grant_role_stmt": _grant_role,
    "insert_stmt": _insert,
    "lock_stmt": _lock,
    "merge_stmt": _merge,
    "refresh_mat_view_stmt": _refresh,
    "reindex_stmt": _reindex,
    "transaction_stmt": _transaction,
    "truncate_stmt": _truncate,
    "update_stmt": _update,
    "vacuum_stmt": _vacuum,
    "variable_set_stmt": _set,
}
