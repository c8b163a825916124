"""The page of pre-deployment-validation, and the one error that names every closed gate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from azora_ci.core.errors import AzoraError, NotTrueError
from azora_ci.core.markdown import code, table
from azora_ci.gates import migrations, readiness
from azora_ci.gates.audit import gate
from azora_ci.gates.readiness import Problem

PROBLEM_HEADS = ("Where", "Problem", "Next step")


@dataclass
class Closed:
    """The gates that are closed. Each gate is tried in a ``tried`` block, so that none hides another; ``error`` names all."""

    problems: list[Problem] = field(default_factory=list)
    errors: list[AzoraError] = field(default_factory=list)

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Keep the error that closes a gate."""
        try:
            yield
        except AzoraError as error:
            self.errors.append(error)
            self.problems.append(readiness.of_error(error))

    def add(self, title: str, problems: Iterable[Problem]) -> None:
        """Keep problems of the repository or of production."""
        for problem in problems:
            self.errors.append(NotTrueError(title, what=str(problem), where=problem.where, next_step=problem.next_step))
            self.problems.append(problem)

    def error(self) -> AzoraError | None:
        """Return None, the only error, or one that names every problem; its kind is that of all, else NotTrueError."""
        if len(self.errors) < 2:
            return next(iter(self.errors), None)
        kinds = {type(error) for error in self.errors}
        return (kinds.pop() if len(kinds) == 1 else NotTrueError)(
            f"{len(self.errors)} problems stop this deployment",
            what="\n".join(map(str, self.problems)),
            where="the table in the summary of this run; nothing was changed",
            next_step="\n".join(dict.fromkeys(problem.next_step for problem in self.problems)),
        )


def page(version: str, evidence: Mapping[str, Any]) -> str:
    """Return the page in Markdown: a table of the problems with what to do, then a table of every gate."""
    problems = evidence["problems"]
    rows = [(problem["where"], problem["what"], problem["next"]) for problem in problems]
    heading = f"### {len(problems)} problem{'s' * (len(problems) > 1)} to be repaired before {version} is deployed"
    parts = [heading, table(PROBLEM_HEADS, rows)] if rows else []
    return "\n\n".join([*parts, f"### Gates of {version}", table(("Gate", "Source", "Result"), _rows(evidence))])


def _rows(evidence: Mapping[str, Any]) -> Iterable[tuple[Any, Any, Any]]:
    for check in evidence["checks"]:
        yield check["name"], check["source"], f"{'✓' if check['passed'] else '✗'} {check['conclusion']}"
    if "audit" in evidence:
        yield gate.row(evidence["audit"])
    for command in evidence["commands"]:
        outcome = f"{'✗' if command['exit_code'] else '✓'} exit code {command['exit_code']}, {command['seconds']} s"
        yield code(" ".join(command["argv"])), command["purpose"], outcome
    for entry in evidence.get("gates", {}).get("differences", []):
        branch = evidence["gates"]["branch"]
        yield code(entry["key"]), f"{branch}, not the tag", f"{entry['branch']} counts, the tag has {entry['tag']}"
    if "approval" in evidence:
        approval = evidence["approval"]
        yield "approval by environment", None, f"enforced: {str(approval['enforced']).lower()}, {approval['reason']}"
    yield from _entry_rows(evidence)
    if "migrations" in evidence:
        yield migrations.row(evidence["migrations"])
    for skipped in evidence["not_checked"]:
        yield skipped["name"], None, f"not checked: {skipped['reason']}"


def _entry_rows(evidence: Mapping[str, Any]) -> Iterable[tuple[Any, Any, Any]]:
    if emergency := evidence.get("emergency"):
        passed = f"passed: {' and '.join(emergency['passed'])}" if emergency["passed"] else "no gate was closed"
        yield "emergency", emergency["by"], f"{emergency['reason']}\n{passed}; a person reviews it within 24 hours of the deployment"
    if calendar := evidence.get("calendar"):
        until = f"until {calendar['open_until']}" if calendar["open_until"] else "for a year at least"
        yield "calendar", calendar["timezone"], f"✓ open {until}" if calendar["open"] else f"✗ {calendar['reason']}"
    if staging := evidence.get("staging"):
        record = staging["record"]
        yield (
            staging["environment"],
            staging["location"],
            f"✓ {record['deployment_id']}, {record['version']}" if record else "✗ not deployed",
        )
