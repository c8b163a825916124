"""Whether the version that runs bears a release's pending migrations: judged before anything is changed, production is only read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azora_ci.core.actions import Actions
from azora_ci.core.config import DatabaseSettings
from azora_ci.core.errors import AzoraError, NotTrueError
from azora_ci.core.variables import truth, variable
from azora_ci.database.migrations import catalogue, files, history, prisma
from azora_ci.database.migrations.judgement.judge import SHORTENED, judge, kind_of
from azora_ci.database.migrations.judgement.model import Facts, Statement, Verdict, worst
from azora_ci.database.migrations.judgement.words import NEW
from azora_ci.database.migrations.production import read_facts
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.gates.readiness import Problem, of_error
from azora_ci.gates.squawk import Remark

MOST = 100  # findings that are recorded
Remarks = Callable[[Sequence[str]], list[Remark] | None]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What becomes of migrations that the version that runs may not bear: a group of variables."""

    require_compatible: bool = variable(
        "MIGRATIONS_REQUIRE_COMPATIBLE", "true: the gate is closed unless the version that runs surely bears every pending migration",
        example="true", parse=truth, default="false",
    )  # fmt: skip
    incompatible_reason: str | None = variable(
        "MIGRATIONS_INCOMPATIBLE_REASON", "why migrations are applied that the running version may not bear; lands in the record",
        example="the column is unused since v1.1.0", required=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What there is to know of one statement: its place, what it endangers (data, old-version, unknown, lock, remark), why, what to do.

    ``locks``: table -> the strongest lock; ``waits``: table -> who waits there until the statement is done, and how big it is in
    production where that is known; ``rules``: those of squawk that speak of the same statement.
    """

    file: str
    line: int
    kind: str
    statement: str
    verdict: Verdict
    reason: str
    instead: str
    locks: dict[str, str]
    waits: dict[str, str]
    rewrites: tuple[str, ...]
    rules: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the finding as evidence."""
        return {**vars(self), "verdict": str(self.verdict), "rewrites": list(self.rewrites), "rules": list(self.rules)}

    def __str__(self) -> str:
        waits = [f"{name}: {text}" for name, text in self.waits.items()]
        return "\n".join(filter(None, (self.statement, self.reason, *waits, f"instead: {self.instead}" if self.instead else "")))

    @property
    def title(self) -> str:
        """Return the verdict as a title."""
        if self.verdict is Verdict.COMPATIBLE:
            return "Users wait for this migration" if self.kind == "lock" else "A remark on this migration"
        doubt = "does not bear" if self.verdict is Verdict.INCOMPATIBLE else "may not bear"
        return f"The running version {doubt} this migration"


@dataclass(frozen=True)
class Judgement:
    """The judgement of pending migrations: how many statements, the worst verdict, findings; ``squawk``: whether it was asked, too."""

    files: tuple[str, ...]
    statements: int
    verdict: Verdict
    findings: tuple[Finding, ...]
    squawk: bool

    def document(self) -> dict[str, Any]:
        """Return the judgement as evidence."""
        return {
            "files": list(self.files),
            "statements": self.statements,
            "verdict": str(self.verdict),
            "findings": [finding.document() for finding in self.findings[:MOST]],
            "squawk": self.squawk,
        }

    def doubtful(self) -> list[Finding]:
        """Return the findings of statements that the version that runs does not surely bear."""
        return [finding for finding in self.findings if finding.verdict is not Verdict.COMPATIBLE]


def examine(pending: Sequence[tuple[str, str]], facts: Facts, remarks: Remarks) -> Judgement:
    """Judge pending migrations, (path, SQL) in order, with what is known of production; one finding a statement, ours before squawk's."""
    statements = judge(pending, facts)
    names = tuple(name for name, _ in pending)
    said = remarks(names)
    findings = [finding for statement in statements if (finding := _finding(statement, facts, said or []))]
    return Judgement(names, len(statements), worst(statements), tuple(findings), said is not None)


def _finding(statement: Statement, facts: Facts, remarks: Sequence[Remark]) -> Finding | None:
    of_it = [remark for remark in remarks if remark.file == statement.file and statement.line <= remark.line <= statement.last_line]
    own = all(action.reason.startswith(NEW) for action in statement.actions)  # squawk looks at one file, and has warned of nothing
    kind = kind_of(statement) or ("remark" if of_it and not own else None)
    if kind is None:
        return None
    reason = "; ".join(remark.message for remark in of_it) if kind == "remark" else statement.worst.reason
    waits = {name: _wait(facts, name, str(lock), lock.stops) for name, lock in sorted(statement.blocked.items())}
    instead, rewrites = statement.worst.instead, tuple(sorted(statement.rewrites))
    rules = tuple(dict.fromkeys(remark.rule for remark in of_it))
    locks = {name: str(lock) for name, lock in sorted(statement.locks.items())}
    return Finding(
        statement.file, statement.line, kind, statement.text[:SHORTENED], statement.verdict, reason, instead, locks, waits, rewrites, rules
    )


def _wait(facts: Facts, name: str, lock: str, stops: str) -> str:
    size = facts.size(name)
    return f"{stops} ({lock}) until it is done{f'; {size}' if size else ''}"


# --- what is pending --------------------------------------------------------------------------------------------------------


def pending_in_production(database: DatabaseSettings, url: DatabaseUrl) -> list[tuple[str, str]] | None:
    """Return (path, SQL) of the migrations that a deployment would apply; None where their tool alone knows which.

    Raises UnreachableError, BadInputError for files that cannot be read, and NotTrueError for what the job that migrates
    refuses.
    """
    if database.tool == "none":
        return []
    if database.tool == "prisma":
        release = prisma.read_folder(database.migrations_dir)
        plan = history.plan(release, prisma.read_table(url, prisma.schema_of(url, database.schema)))
        if (refusal := history.refusal(plan)) is not None:
            where = f"{database.migrations_dir} and {prisma.TABLE} of the production database"
            raise NotTrueError(refusal.title, what=refusal.what, where=where, next_step=refusal.next_step)
        return files.read(Path(database.migrations_dir, migration.name, "migration.sql") for migration in plan.pending)
    lines = catalogue.read(url)
    if not any(map(catalogue.is_history, lines)):
        return None
    rows = [line for line in lines if line.startswith(catalogue.HISTORY)]
    recognised = (pending for found in files.folders(Path()) if (pending := files.pending(found, rows)) is not None)
    pending = next(recognised, None)
    return None if pending is None else files.read(pending)


def of_production(database: DatabaseSettings, url: DatabaseUrl, remarks: Remarks) -> Judgement | None:
    """Judge what a deployment would apply to production; None where that is not known. Raises as ``pending_in_production`` does."""
    pending = pending_in_production(database, url)
    return None if pending is None else examine(pending, read_facts(url) if pending else Facts(known=True), remarks)


# --- the gate ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gate:
    """The gate of pre-deployment-validation: it tells each finding, and is closed only where the policy says so."""

    policy: Policy
    actions: Actions
    say: Callable[[str], None]

    def judge(self, database: DatabaseSettings, url: DatabaseUrl, remarks: Remarks) -> tuple[dict[str, Any], list[Problem]]:
        """Judge what is pending in production; return the evidence, and what closes the gate."""
        why_not, judgement, closing = "", None, list[Problem]()
        try:
            judgement = of_production(database, url, remarks)
            why_not = "" if judgement else "which are pending is known to their tool alone; what it changes is shown after it ran"
        except NotTrueError as error:
            closing = [of_error(error)]
            why_not = closing[0].what
        except AzoraError as error:
            why_not = f"{error.title}: {error.what}"
        evidence: dict[str, Any] = {"migrations": self._document(judgement, why_not)}
        if judgement is None:
            self.say(f"- migrations are not judged: {why_not}")
            if self.policy.require_compatible and not closing:
                closing = [Problem("MIGRATIONS_REQUIRE_COMPATIBLE", f"migrations are not judged: {why_not}", "read them, and take it out")]
            return evidence, closing
        self._annotate(judgement)
        doubtful = judgement.doubtful()
        if not doubtful:
            self.say(f"✓ {len(judgement.files)} pending migrations, {judgement.statements} statements: the running version bears them")
        elif self.policy.require_compatible:
            return evidence, [_problem(finding) for finding in doubtful]
        elif self.policy.incompatible_reason:
            evidence["override_reason"] = f"migrations are {judgement.verdict}: {self.policy.incompatible_reason}"
        else:
            self.say("- MIGRATIONS_INCOMPATIBLE_REASON is not set: nobody has said why the running version bears these migrations")
        return evidence, []

    def _document(self, judgement: Judgement | None, why_not: str) -> dict[str, Any]:
        policy = {"require_compatible": self.policy.require_compatible, "reason": self.policy.incompatible_reason}
        return {**policy, "not_judged": why_not or None, "judgement": judgement.document() if judgement else None}

    def _annotate(self, judgement: Judgement) -> None:
        """Annotate each statement in its file: an error where it closes the gate, a warning where it is doubtful, else a notice."""
        doubtful = self.actions.error if self.policy.require_compatible else self.actions.warning
        for finding in judgement.findings:
            tell = self.actions.notice if finding.verdict is Verdict.COMPATIBLE else doubtful
            tell(finding.title, str(finding), file=finding.file, line=finding.line)


def _problem(finding: Finding) -> Problem:
    step = "have the running version bear it first (expand, then contract), or take MIGRATIONS_REQUIRE_COMPATIBLE out for this release"
    return Problem(f"{finding.file}:{finding.line}", f"{finding.verdict}: {finding.reason}", finding.instead or step)


def row(document: dict[str, Any]) -> tuple[str, str, str]:
    """Return the row of the page: what was judged, by what, and the verdict."""
    judgement = document["judgement"]
    if judgement is None:
        return "pending migrations", "", f"not judged: {document['not_judged']}"
    open_ = judgement["verdict"] == Verdict.COMPATIBLE or not document["require_compatible"]
    counted = f"{len(judgement['files'])} pending, {len(judgement['findings'])} findings"
    return "pending migrations", "the running version", f"{'✓' if open_ else '✗'} {judgement['verdict']}, {counted}"
