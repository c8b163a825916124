"""The command ``adopt``: write workflows and a first configuration into an application's repository."""

from __future__ import annotations

import re
from pathlib import Path

import click

from azora_ci.cli.common import reported_errors

_CHECKOUT = Path(__file__).resolve().parents[3]


@click.command(short_help="Write workflows and a configuration into a repository.")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; exit 1 with a diff when the adopted files are not this version's.")
@click.option("--force", is_flag=True, help="Also replace workflows that somebody changed. The configuration is never replaced.")
@click.option("--reusable/--copy", default=None, help="Call the published workflows, or copy them. [default: as it is; at first: copy]")
@click.option("--ref", metavar="SHA", help="Commit of azora-ci to pin. [default: this checkout's; else what is pinned already]")
@click.option("--repository", metavar="OWNER/NAME", help="Repository that publishes azora-ci. [default: this checkout's origin]")
def adopt(path: Path, *, check: bool, force: bool, reusable: bool | None, ref: str | None, repository: str | None) -> None:
    """Write the workflows and a first configuration into the repository at PATH, and list what is still to be done."""
    from azora_ci.cli.adopt import plan as adoption
    from azora_ci.cli.adopt import report

    with reported_errors():
        commit = ref or _git("rev-parse", "HEAD")
        action = adoption.SetupAction(repository or _origin() or adoption.REPOSITORY, commit) if commit else None
        planned = adoption.plan(path, action, reusable=reusable)
        if check:
            adoption.check(planned)
            click.echo(f"The adopted files are this version's: {', '.join(str(file.path) for file in planned.files)}")
            return
        adoption.write(planned, force=force)
        click.echo(report.report(planned), nl=False)


def _git(*arguments: str) -> str | None:
    """Return git's output for this checkout; None when git fails, prints nothing, or azora-ci is installed without a checkout."""
    from azora_ci.core.actions import Actions
    from azora_ci.core.clock import Clock
    from azora_ci.core.job_log import JobLog
    from azora_ci.core.process import Processes

    if not (_CHECKOUT / ".git").exists():
        return None
    processes = Processes(JobLog(Actions(), Clock()))
    completed = processes.run(["git", "-C", str(_CHECKOUT), *arguments], check=False, echo=False, timeout=30)
    return completed.stdout.strip() or None if completed.returncode == 0 else None


def _origin() -> str | None:
    """Return ``owner/name`` of this checkout's origin; None when the origin is not on GitHub."""
    match = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?$", _git("remote", "get-url", "origin") or "")
    return match[1] if match else None
