"""The command ``adopt``: write workflows and a first configuration into an application's repository."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from azora_ci.cli.common import own_processes, reported_errors
from azora_ci.core import schemas
from azora_ci.core.documents import read_json

_CHECKOUT = Path(__file__).resolve().parents[3]


@click.command(short_help="Write workflows and a configuration into a repository.")
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; say all that stands before a deployment.")
@click.option("--force", is_flag=True, help="Also replace workflows that somebody changed. The configuration is never replaced.")
@click.option("--reusable/--copy", default=None, help="Call the published workflows, or copy them. [default: as it is; at first: copy]")
@click.option("--compose", "compose_files", multiple=True, metavar="FILE", help="Compose file to read; several are merged in order.")
@click.option("--profile", "profiles", multiple=True, metavar="NAME", help="Profile of the compose files that production runs.")
@click.option("--target", type=click.Choice(["kubernetes", "docker_hosts"]), help="Where it runs. [default: by what is production's]")
@click.option("--manifests", multiple=True, metavar="PATH", help="Kubernetes manifests to read: a file, a folder, an overlay or a chart.")
@click.option("--upgrade", is_flag=True, help="Show what this version changes, and write it; the configuration stays as it is.")
@click.option("--remove", is_flag=True, help="Delete the adopted workflows, and say what is left of azora-ci.")
@click.option("--ref", metavar="SHA", help="Commit of azora-ci to pin. [default: this checkout's; else what is pinned already]")
@click.option("--repository", metavar="OWNER/NAME", help="Repository that publishes azora-ci. [default: this checkout's origin]")
def adopt(  # noqa: PLR0913 - the options of a command, all by keyword
    path: Path,
    *,
    force: bool,
    reusable: bool | None,
    compose_files: tuple[str, ...],
    profiles: tuple[str, ...],
    target: str | None,
    manifests: tuple[str, ...],
    ref: str | None,
    repository: str | None,
    **instead: bool,
) -> None:
    """Write the workflows and a first configuration into the repository at PATH, and list what is still to be done."""
    from azora_ci.cli.adopt import plan as adoption
    from azora_ci.cli.adopt import report, upgrade
    from azora_ci.cli.adopt.discover import Wanted

    with reported_errors():
        _only_one(instead)
        if instead["remove"]:
            click.echo(upgrade.removed(upgrade.remove(path, force=force), path))
            return
        commit = ref or _git("rev-parse", "HEAD")
        action = adoption.SetupAction(repository or _origin() or adoption.REPOSITORY, commit) if commit else None
        planned = adoption.plan(path, action, reusable=reusable, wanted=Wanted(compose_files, profiles, target, manifests))
        if instead["check"]:
            for warning in report.bypasses(planned.application):
                click.echo(f"Warning: {warning}", err=True)
            for note in report.check_notes(planned):
                click.echo(note)
            adoption.check(planned)
            click.echo(f"The adopted files are this version's, nothing is missing: {', '.join(str(file.path) for file in planned.files)}")
            return
        if instead["upgrade"]:
            click.echo(upgrade.report(planned, _schema_of(adoption.pinned_action(path).commit), schemas.load("deploy-config")))
            adoption.write(planned, force=force)
            return
        adoption.write(planned, force=force)
        click.echo(report.report(planned), nl=False)


def _only_one(instead: Mapping[str, bool]) -> None:
    """Raise UsageError for two things to do instead of adopting."""
    chosen = [f"--{name}" for name, given in instead.items() if given]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)} do not go together: give one of them")


def _schema_of(commit: str) -> Any:
    """Return the configuration's schema at a commit of this checkout, or None."""
    from azora_ci.cli.adopt import upgrade

    text = _git("show", f"{commit}:{upgrade.SCHEMA}")
    return None if text is None else read_json(text)


def _git(*arguments: str) -> str | None:
    """Return git's output for this checkout; None when git fails, prints nothing, or azora-ci is installed without a checkout."""
    if not (_CHECKOUT / ".git").exists():
        return None
    completed = own_processes().run(["git", "-C", str(_CHECKOUT), *arguments], check=False, echo=False, timeout=30)
    return completed.stdout.strip() or None if completed.returncode == 0 else None


def _origin() -> str | None:
    """Return ``owner/name`` of this checkout's origin; None when the origin is not on GitHub."""
    match = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?$", _git("remote", "get-url", "origin") or "")
    return match[1] if match else None
