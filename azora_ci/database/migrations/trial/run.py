"""Run the migrate command on the copy and say what it did: the result is evidence, without a row of production in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from azora_ci.core.errors import AzoraError, NotTrueError
from azora_ci.core.process import ending
from azora_ci.core.process.isolation import Door
from azora_ci.database.migrations import history, prisma
from azora_ci.database.migrations.catalogue import Change
from azora_ci.database.migrations.judgement.judge import judge
from azora_ci.database.migrations.production import read_facts
from azora_ci.database.migrations.trial import server_log
from azora_ci.database.migrations.trial.comparison import surprises
from azora_ci.database.migrations.trial.copy import Copy, Relation, changed_rows, prepare, relations, rows
from azora_ci.database.migrations.trial.place import Companion, Place, lines
from azora_ci.database.postgres import DatabaseUrl

if TYPE_CHECKING:
    from azora_ci.core.clock import Clock
    from azora_ci.core.config import DatabaseSettings
    from azora_ci.core.process import Completed, Processes
    from azora_ci.core.process.isolation import Isolation
    from azora_ci.database.migrations.history import Migration
    from azora_ci.database.scratch import Scratch
    from azora_ci.database.server import ServerFacts

FULL, SCHEMA_ONLY, OFF, NOTHING = "full copy", "schema only", "off", "nothing pending"
MOST_STATEMENTS = 200
MOST_LINES = 2000  # of what a catalogue gained or lost


@dataclass
class Trial:
    """A trial of a release's migrations (empty: another tool's). ``tree`` gives the application's files as they are in the isolation.

    Called with a copy of production, it tries them there. Then ``evidence`` says what it did, and ``failure`` why it did not pass.
    """

    processes: Processes
    clock: Clock
    settings: DatabaseSettings
    command: tuple[str, ...]
    release: tuple[Migration, ...]
    connection_string: str
    tree: Callable[[], AbstractContextManager[Isolation]]
    tree_sha256: str | None
    companion: Companion | None = None
    how: str = FULL
    reason: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    failure: AzoraError | None = None

    @property
    def production(self) -> DatabaseUrl:
        """Return production's address."""
        return DatabaseUrl.parse(self.connection_string)

    def __call__(self, scratch: Scratch, database: DatabaseUrl, facts: ServerFacts) -> None:
        """Try the migrations on ``database``. What goes wrong with them is kept, so that the proof of the backup counts all the same."""
        try:
            self._try(scratch, database, facts)
        except AzoraError as error:
            self.failure = error

    def _try(self, scratch: Scratch, database: DatabaseUrl, facts: ServerFacts) -> None:
        pending = self._pending(database)
        self.evidence = {"how": self.how, "reason": self.reason, "files": files_of(pending), "tree_sha256": self.tree_sha256}
        if self.settings.command is None and not pending:
            self.evidence["how"] = NOTHING
            return
        with self.tree() as isolation:
            copy = prepare(scratch, database, self.production, facts)
            self.evidence |= self._run(copy, isolation, pending)
        for line in describe(self.evidence):
            self.processes.log.say(f"tried on a copy ({self.how}): {line}")
        if not self.evidence["passed"]:
            raise error_of(self.evidence, self.command, powerful=copy.role in facts.superusers)

    def _pending(self, database: DatabaseUrl) -> tuple[Migration, ...]:
        """Return the migrations that the copy lacks; none where they are refused anyway, which the job that migrates says."""
        if self.settings.command is not None:
            return ()
        plan = history.plan(self.release, prisma.read_table(database, prisma.schema_of(self.production, self.settings.schema)))
        return plan.pending if history.refusal(plan) is None else ()

    def _run(self, copy: Copy, isolation: Isolation, pending: tuple[Migration, ...]) -> dict[str, Any]:
        before, earlier = lines(copy.url), relations(copy.url)
        judged = judge([(migration.name, migration.text) for migration in pending], read_facts(copy.url)) if pending else None
        place = self._place(copy)
        if self.companion is not None:
            self.companion.before(place)
        counted = rows(place.url)
        mark, started = place.mark(), self.clock.monotonic()
        completed = self._migrate(place, isolation)
        seconds = self.clock.monotonic() - started
        url = place.url
        after, later = place.catalogue(), relations(url)
        changed = changed_rows(counted, url, self.clock)
        known = "\n".join([*(migration.text for migration in pending), *before, *after])
        account = place.account(mark, earlier, pending, known)
        if not account.sessions:
            self._show_output(completed)
        rewritten = sorted(relation.name for oid, relation in earlier.items() if _is_rewritten(relation, later.get(oid)))
        succeeded = completed.returncode == 0
        left = self._unapplied(url, pending) if succeeded else []
        if self.companion is not None and succeeded and not left:
            self.companion.after(place, known)
        return {
            "passed": succeeded and not left,
            "seconds": round(seconds, 3),
            "exit_code": completed.returncode,
            "code": prisma.error_code(f"{completed.stdout}\n{completed.stderr}") if pending and not succeeded else None,
            "statements": [_statement(statement) for statement in account.statements[:MOST_STATEMENTS]],
            "statement_seconds": round(sum(statement.seconds for statement in account.statements), 3),
            "rows": changed[:MOST_STATEMENTS],
            "blocked": account.blocked,
            "rewritten": rewritten,
            "surprises": surprises(judged, earlier, account.blocked, rewritten) if judged is not None and succeeded else None,
            "errors": [vars(refused) for refused in account.refused[-5:]] if not succeeded else [],
            "unapplied": left,
            "catalogue": _change(before, after),
        }

    def _place(self, copy: Copy) -> Place:
        url = copy.as_role(self.production)
        address = copy.address(self.connection_string) if self.settings.command is None else url.text
        for secret in (copy.password, address):
            self.processes.log.add_secret(secret)
        return Place(copy, url, address, Door(copy.socket, int(copy.url.port)))

    def _migrate(self, place: Place, isolation: Isolation) -> Completed:
        libpq = {} if self.settings.command is None else place.url.libpq_env()
        env = {**prisma.QUIET, **libpq, **place.environment(self.settings.variables)}
        alone = replace(isolation, door=place.door)
        return self.processes.run_isolated(self.command, alone, env=env, timeout=prisma.DEPLOY_SECONDS, check=False, withheld=True)

    def _show_output(self, completed: Completed) -> None:
        """Show what a command printed that never got as far as a statement: it has seen no row."""
        for line in (completed.stdout + completed.stderr).splitlines()[-50:]:
            self.processes.log.say(f"  {line}")

    def _unapplied(self, url: DatabaseUrl, pending: tuple[Migration, ...]) -> list[str]:
        """Return the pending migrations that a command which succeeded did not apply."""
        if not pending:
            return []
        applied = {row.name for row in prisma.read_table(url, prisma.schema_of(self.production, self.settings.schema)) if row.applied}
        return [migration.name for migration in pending if migration.name not in applied]


def files_of(pending: Iterable[Migration]) -> list[dict[str, str]]:
    """Return the migrations as evidence: name and SHA-256."""
    return [{"name": migration.name, "sha256": migration.checksum} for migration in pending]


def _is_rewritten(relation: Relation, later: Relation | None) -> bool:
    return later is not None and relation.file not in {0, later.file}


def _statement(statement: server_log.Statement) -> dict[str, Any]:
    return {
        "tag": statement.tag,
        "objects": list(statement.objects),
        "seconds": statement.seconds,
        "locks": [{"table": table, "mode": mode} for table, mode in statement.locks],
        "gained": list(statement.gained),
        "lost": list(statement.lost),
        "where": statement.where,
    }


def _change(before: frozenset[str], after: frozenset[str]) -> dict[str, Any]:
    change = Change.between(before, after)
    return {
        "sha256": hashlib.sha256("\n".join(sorted(after)).encode()).hexdigest(),
        "gained": list(change.gained[:MOST_LINES]),
        "lost": list(change.lost[:MOST_LINES]),
        "complete": max(len(change.gained), len(change.lost)) <= MOST_LINES,
    }


def describe(trial: Mapping[str, Any]) -> list[str]:
    """Return what was observed as lines for people: seconds, tables that nobody could use, rows that changed, what was rewritten."""
    waiting = {True: "nobody could read or write", False: "nobody could write"}
    counted = f"{len(trial['statements'])} statements"
    if trial["how"] == SCHEMA_ONLY:  # empty tables say nothing of how long full ones take
        lines = [f"{counted}; how many seconds they take in production is not known: there were no rows"]
    else:
        lines = [f"{counted}, {trial['statement_seconds']:.2f} s in the server, {trial['seconds']:.1f} s in all"]
    for entry in trial["blocked"]:
        seconds = "" if trial["how"] == SCHEMA_ONLY else f" for {entry['seconds']:.2f} s"
        lines.append(f"{waiting[entry['mode'] == server_log.NOBODY_READS]} {entry['table']}{seconds} ({entry['mode']})")
    lines += [
        f"{entry['table']}: {', '.join(f'{entry[kind]:,} rows {kind}' for kind in ('inserted', 'updated', 'deleted') if entry[kind])}"
        for entry in trial.get("rows") or ()
    ]
    lines += [f"rewritten: {', '.join(trial['rewritten'])}"] if trial["rewritten"] else []
    return lines + [f"not as judged: {line}" for line in trial.get("surprises") or ()]


def error_of(trial: Mapping[str, Any], command: tuple[str, ...], *, powerful: bool) -> NotTrueError:
    """Return the error for a trial that failed. ``powerful``: production's role has rights that none has on the copy."""
    code = f", {trial['code']}" if trial["code"] else ""
    lines = [f"{' '.join(command)}: {ending(trial['exit_code'])}{code}"]
    lines += [f"not applied although it succeeded: {', '.join(trial['unapplied'])}"] if trial["unapplied"] else []
    refused = trial["errors"][-1:]
    lines += [f"{error['message']} (SQLSTATE {error['sqlstate']}), {error['where']}" for error in refused]
    done = [server_log.Statement(entry["tag"], tuple(entry["objects"]), 0.0).describe() for entry in trial["statements"]]
    lines += [f"done before it: {len(done)} statements, the last {done[-1]}"] if done else []
    lines += ["what the command printed is withheld: it may hold rows of production"]
    step = "correct the migration (or the rows, in production itself) and release again"
    if powerful and refused and refused[0]["sqlstate"] == "42501":
        step = "no role is a superuser on the copy, as yours is in production: if only that is missing, set MIGRATIONS_TRIAL=false and say "
        step += "why in MIGRATIONS_TRIAL_REASON"
    return NotTrueError(
        "The migration fails on a copy of production",
        what="production is untouched, the migration fails on a copy of production's data\n" + "\n".join(lines),
        where="the copy that proved the backup",
        next_step=step,
    )
