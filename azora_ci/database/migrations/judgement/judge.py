"""The judgement of a release's migrations: what each statement locks and rewrites, and whether the running version bears it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from azora_ci.database.migrations.history import Migration
from azora_ci.database.migrations.judgement import sql, statements
from azora_ci.database.migrations.judgement.model import Action, Facts, Statement, Verdict
from azora_ci.database.migrations.judgement.scope import Scope
from azora_ci.database.migrations.judgement.sql import Parsed

NOTHING_KNOWN = Facts()
SHORTENED = 200  # characters of a statement in evidence


def judge(files: Iterable[tuple[str, str]], facts: Facts = NOTHING_KNOWN) -> list[Statement]:
    """Return the statements of a release's pending migrations, (name of the file, SQL) in the order in which they are applied."""
    scope = Scope(facts)
    return [_judged(scope, name, parsed) for name, text in files for parsed in sql.parse(text)]


def _judged(scope: Scope, name: str, parsed: Parsed) -> Statement:
    if parsed.error:
        reason = f"PostgreSQL's grammar does not know it: {parsed.error}"
        actions = [Action("not SQL", Verdict.UNKNOWN, reason, "correct the file; commands of psql (\\i) are no SQL")]
    else:
        made = set(scope.made)
        actions = list(statements.judge(scope, parsed))
        actions = [_for_users(scope, made, action) for action in actions]
    last_line = parsed.line + parsed.text.count("\n")
    return Statement(name, parsed.line, last_line, " ".join(parsed.text.split()), tuple(actions))


def _for_users(scope: Scope, made: set[str], action: Action) -> Action:
    """Return an action without the relations that the release made: nobody waits for them."""
    locks = {name: lock for name, lock in action.locks.items() if name and name not in made | scope.made}
    names = frozenset(locks)
    return replace(action, locks=locks, rewrites=action.rewrites & names, scans=action.scans & names)


@dataclass(frozen=True)
class Risk:
    """A statement that may lose data, break the version that still runs, or hold a lock for long."""

    migration: str
    kind: str  # data | old-version | unknown | lock
    statement: str
    why: str


def risks_of(migrations: Iterable[Migration]) -> Iterator[Risk]:
    """Yield statements to review before they are applied, one entry each; what an earlier migration made is known to the later ones."""
    for statement in judge((migration.name, migration.text) for migration in migrations):
        risk = kind_of(statement)
        if risk is not None:
            yield Risk(statement.file, risk, statement.text[:SHORTENED], why(statement))


def kind_of(statement: Statement) -> str | None:
    """Return what a statement endangers, the worst first, or None: data, old-version, unknown, lock."""
    if any(action.loses for action in statement.actions):
        return "data"
    if statement.verdict is not Verdict.COMPATIBLE:
        return "old-version" if statement.verdict is Verdict.INCOMPATIBLE else "unknown"
    return "lock" if statement.blocked else None


def why(statement: Statement) -> str:
    """Return the reason of the worst action; of a compatible statement who waits meanwhile."""
    if statement.verdict is Verdict.COMPATIBLE and statement.blocked:
        waits = "; ".join(f"{lock.stops} in {name} until it is done ({lock})" for name, lock in sorted(statement.blocked.items()))
        return f"{waits}. {statement.worst.reason}"
    return f"{statement.worst.what}: {statement.worst.reason}"
