"""The judgement of ALTER TABLE where it adds or drops constraints and partitions. Pure."""

from __future__ import annotations

from typing import Any

from azora_ci.database.migrations.judgement import sql
from azora_ci.database.migrations.judgement.model import Action, Lock, Verdict
from azora_ci.database.migrations.judgement.scope import Scope
from azora_ci.database.migrations.judgement.words import BAD, BORNE, CHECKED, GOOD, LATER, NEW, OPEN, REFUSES

NOT_VALID = "add it NOT VALID once no version breaks it, then VALIDATE CONSTRAINT in a migration of its own"


def kind_of(constraint: Any) -> str:
    """Return the kind of a constraint, ``FOREIGN``."""
    return sql.label("ConstrType", constraint.contype).removeprefix("CONSTR_")


def add_constraint(scope: Scope, table: str, command: Any) -> Action:
    """Return what ADD CONSTRAINT does."""
    constraint = getattr(command, "def").constraint
    kind = kind_of(constraint)
    if constraint.conname:
        scope.make_object("constraint", f"{table}.{constraint.conname}")
    if kind == "NOTNULL":
        return require(scope, table, sql.strings(constraint.keys)[0])
    names = frozenset(scope.family(table))
    locks = dict.fromkeys(names, Lock.SHARE_ROW_EXCLUSIVE if kind == "FOREIGN" else Lock.ACCESS_EXCLUSIVE)
    if kind == "FOREIGN":
        locks[scope.name(constraint.pktable)] = Lock.SHARE_ROW_EXCLUSIVE
    checked = not constraint.skip_validation and not constraint.indexname
    verdict, reason, instead = (GOOD, NEW, "") if scope.is_new(table) else _constrain(scope, table, kind, constraint)
    if verdict is GOOD and kind == "FOREIGN" and constraint.fk_del_action in "ar":
        reason += "; rows that point to others keep the running version from deleting those"
    return Action(f"ADD {_CONSTRAINTS.get(kind, kind)}", verdict, reason, instead, locks, scans=names if checked else frozenset())


_CONSTRAINTS = {"FOREIGN": "FOREIGN KEY", "PRIMARY": "PRIMARY KEY", "EXCLUSION": "EXCLUDE"}


def _constrain(scope: Scope, table: str, kind: str, constraint: Any) -> tuple[Verdict, str, str]:
    """Return verdict, reason and advice of a constraint on a table that users know."""
    columns = sql.strings(constraint.fk_attrs) if kind == "FOREIGN" else sql.strings(constraint.keys)
    empty = scope.unused(table, columns)
    if kind == "FOREIGN" and empty and constraint.fk_matchtype == "s":
        return GOOD, BORNE, ""
    if kind == "UNIQUE" and empty and not constraint.nulls_not_distinct:
        return GOOD, "the running version leaves its columns empty, which is borne any number of times", ""
    if kind == "UNIQUE" and constraint.indexname and ("index", scope.qualified([constraint.indexname])) not in scope.objects:
        return OPEN, "the index refuses the same rows already, unless it is new", "make the index in a release of its own"
    if kind == "CHECK":
        own = sql.columns_in(constraint.raw_expr)
        if own and all(scope.unused(table, [name]) for name in own) and sql.holds_for_null(constraint.raw_expr):
            return GOOD, BORNE, ""
    if kind in {"UNIQUE", "PRIMARY", "EXCLUSION"}:
        advice = "correct the rows and both versions first; CREATE UNIQUE INDEX CONCURRENTLY, then ADD CONSTRAINT … USING INDEX"
        return BAD, REFUSES, advice
    return BAD, "writes of the running version that it refuses fail, with NOT VALID, too", NOT_VALID


def validate(scope: Scope, table: str, command: Any) -> Action:
    """Return what VALIDATE CONSTRAINT does."""
    names = frozenset(scope.family(table))
    locks = dict.fromkeys(names, Lock.SHARE_UPDATE_EXCLUSIVE)
    locks |= dict.fromkeys(scope.referenced(table, command.name), Lock.ROW_SHARE)
    why = CHECKED
    return Action(f"VALIDATE CONSTRAINT {command.name}", GOOD, why, locks=locks, scans=names)


def drop_constraint(scope: Scope, table: str, command: Any) -> Action:
    """Return what DROP CONSTRAINT does."""
    own = scope.is_new(table) or ("constraint", f"{table}.{command.name}") in scope.objects
    locks = dict.fromkeys(scope.family(table), Lock.ACCESS_EXCLUSIVE) | dict.fromkeys(
        scope.referenced(table, command.name), Lock.ACCESS_EXCLUSIVE
    )
    what = f"DROP CONSTRAINT {command.name}"
    scope.drop_object("constraint", f"{table}.{command.name}")
    if own:
        return Action(what, GOOD, NEW, locks=locks)
    why = "more rows are borne; ON CONFLICT and what relies on the check fail without it"
    return Action(what, OPEN, why, "make sure that the running version does not name it", locks)


# --- partitions -----------------------------------------------------------------------------------------------------------


def attach(scope: Scope, table: str, command: Any) -> Action:
    """Return what ATTACH PARTITION does."""
    child = scope.name(getattr(command, "def").partition_cmd.name)
    locks = {table: Lock.SHARE_UPDATE_EXCLUSIVE, child: Lock.ACCESS_EXCLUSIVE}
    reason = NEW if scope.is_new(child) else "its rows appear in the parent, where the running version finds them"
    advice = "" if scope.is_new(child) else "add a CHECK of the partition's bounds and VALIDATE it first, to spare the scan"
    return Action(f"ATTACH PARTITION {child}", GOOD if scope.is_new(child) else OPEN, reason, advice, locks, scans=frozenset({child}))


def detach(scope: Scope, table: str, command: Any) -> Action:
    """Return what DETACH PARTITION does."""
    given = getattr(command, "def").partition_cmd
    child = scope.name(given.name)
    locks = {table: Lock.SHARE_UPDATE_EXCLUSIVE if given.concurrent else Lock.ACCESS_EXCLUSIVE, child: Lock.ACCESS_EXCLUSIVE}
    return Action(
        f"DETACH PARTITION {child}", BAD, "its rows disappear from the parent, where the running version finds them", LATER, locks
    )


def require(scope: Scope, table: str, name: str) -> Action:
    """Return what SET NOT NULL does, or a constraint that says the same."""
    names, column = frozenset(scope.family(table)), scope.column(table, name)
    borne = scope.is_new(table) or (column is not None and column.filled)
    if column is not None:
        column.required = True
    verdict, reason, instead = GOOD, NEW if scope.is_new(table) else "rows that leave it out get its default", ""
    if not borne:
        verdict, reason = BAD, "fails on rows without a value, and so does every write of the running version that has none"
        instead = "have every version write a value first; ADD CHECK (… IS NOT NULL) NOT VALID and VALIDATE it before, to spare the scan"
    return Action(f"SET NOT NULL of {name}", verdict, reason, instead, dict.fromkeys(names, Lock.ACCESS_EXCLUSIVE), scans=names)
