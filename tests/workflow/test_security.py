"""The table of jobs in .github/SECURITY.md is made of the workflow: what each job holds, and whose code runs beside it."""

from __future__ import annotations

from azora_ci.core.markdown import Markup, code, table
from azora_ci.core.pipeline import APPLICATION_JOBS, JOBS
from tests.support import ROOT
from tests.workflow.test_application_jobs import WITH_CODE_BESIDE_SECRETS
from tests.workflow.test_contract import DOCUMENT, ENVIRONMENT, environment_of, references

FILE = ROOT / ".github" / "SECURITY.md"
BEGIN, END = "<!-- jobs: begin, made by tests/workflow/test_security.py -->\n", "<!-- jobs: end -->\n"
HEADS = ("Job", "Environment", "Secrets", "Permissions", "Code of the application")


def jobs_table() -> str:
    """Return the table of the deployment's jobs in Markdown."""
    rows = []
    for job in JOBS:
        definition = DOCUMENT["jobs"][job]
        secrets = [code(name) for name in sorted(set(references(definition, "secrets")))]
        permissions = ", ".join(f"{scope}: {level}" for scope, level in definition["permissions"].items())
        rows.append(
            (
                code(job),
                (environment_of(definition) or "–").replace(ENVIRONMENT, "production"),
                Markup(", ".join(secrets)) if secrets else None,
                permissions,
                _application(job),
            )
        )
    return table(HEADS, rows)


def _application(job: str) -> str | None:
    if job == "audit":
        return "none: it reads lock files"
    return "all of its build" if job in APPLICATION_JOBS else WITH_CODE_BESIDE_SECRETS.get(job.replace("-", "_"))


def test_the_table_of_jobs_is_the_workflows() -> None:
    _, begin, rest = FILE.read_text(encoding="utf-8").partition(BEGIN)
    block, end, _ = rest.partition(END)
    assert (begin, end) == (BEGIN, END)
    assert block.strip() == jobs_table().strip(), f"write between the markers of {FILE.name}:\n\n{jobs_table()}"
