"""Move an adopted repository to this version of azora-ci, or take azora-ci out of it again. The configuration stays a person's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from azora_ci.cli.adopt.plan import CONFIG, WORKFLOW_FOLDER, WORKFLOWS, Adoption, adopted_state, pinned_action, refuse_links
from azora_ci.core import config
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.targets.docker_hosts.host import LABEL
from azora_ci.targets.docker_hosts.names import DEFAULT_PREFIX, Names

UNKNOWN = "PREFIX"  # of names on hosts, for a person to replace
SCHEMA = "schemas/deploy-config.schema.json"


def report(adoption: Adoption, old_schema: Mapping[str, Any] | None, new_schema: Mapping[str, Any]) -> str:
    """Return what an upgrade changes: each file's difference, and the keys of the configuration that are new. Writes nothing.

    ``old_schema``: the configuration's schema at the commit that is pinned now; None when this checkout does not have that commit.
    Raises BadInputError when this version does not read the configuration: nothing is to be written then.
    """
    config.load(adoption.folder / CONFIG)
    was = pinned_action(adoption.folder)
    changed = [file for file in adoption.files if file.state not in {"same", "kept"}]
    lines = [f"Pinned until now: {was}"]
    lines += [f"{file.path}: {file.state}\n{file.diff()}" for file in changed] or ["The workflows are this version's already."]
    lines.append(f"{CONFIG} stays as it is; this version reads it.")
    if old_schema is None:
        lines.append(f"Which keys are new is not known: {was.commit} is not in this checkout (git fetch), and CHANGELOG.md tells")
    else:
        known = dict(keys(old_schema))
        new = [f"  {name}: {text}" for name, text in keys(new_schema) if name not in known]
        lines += ["New keys, each of them optional unless the line above says otherwise:", *new] if new else ["It has no new keys."]
    return "\n".join(lines)


def keys(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, description) of every key that a schema knows; ``*`` stands for a name that a person gives."""
    for name, table in schema.get("properties", {}).items():
        yield f"{prefix}{name}", str(table.get("description", ""))
        yield from keys(table, f"{prefix}{name}.")
    for table in [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]:
        if isinstance(table, Mapping):
            yield from keys(table, f"{prefix}*.")


def remove(folder: Path, *, force: bool = False) -> list[Path]:
    """Delete the adopted workflows and return their paths; the configuration stays. Raises NotTrueError for a changed file, unless forced.

    A rollback needs its workflow: what is deployed stays as it is, without a button.
    """
    refuse_links(folder)
    states = {WORKFLOW_FOLDER / name: adopted_state(folder / WORKFLOW_FOLDER / name) for name in WORKFLOWS}
    changed = [str(path) for path, state in states.items() if state == "changed"]
    if changed and not force:
        raise NotTrueError(
            "A file was changed",
            what=f"{', '.join(changed)}: not as adopted, so somebody's work may be in it",
            where=str(folder),
            next_step="move your changes elsewhere, or delete the file with --force; nothing was deleted",
        )
    there = [path for path, state in states.items() if state is not None]
    for path in there:
        (folder / path).unlink()
    return there


def _names(folder: Path) -> Names:
    """Return the names on the hosts, as the configuration that stays has them."""
    try:
        hosts = config.load(folder / CONFIG).target.docker_hosts
    except (BadInputError, OSError):
        return Names(UNKNOWN)
    return Names(hosts.name) if hosts else Names()


def removed(paths: list[Path], folder: Path) -> str:
    """Return what is left to do in ``folder`` after the workflows were deleted, as text."""
    names = _names(folder)
    note = f"\n  {UNKNOWN} is target.docker_hosts.name; where that is not set it is {DEFAULT_PREFIX}, and {names.front} is {Names().front}"
    unknown = f"{note}: {CONFIG} cannot be read" if names.prefix == UNKNOWN else ""
    ours = f"--all --filter label={LABEL}image --filter name='{names.pattern}'"
    networks = f"docker network rm {names.front} $(docker network ls --quiet --filter name='^{names.network('')}')"
    return f"""Deleted: {", ".join(map(str, paths)) or "nothing: no adopted workflow was there"}
Left alone, because it is yours:
  {CONFIG}
  the environments production, production-approval and operations with their secrets and variables (Settings > Environments)
  backups, and the records beside them, in the bucket of [backup] location: they are the evidence of what was deployed
  production itself. It keeps running as it is; on each host of docker_hosts this lists what azora-ci started there, and the second
  line ends it, with an interruption, once something else serves your users:
    docker ps {ours}
    docker rm --force $(docker ps --quiet {ours}) && {networks} && docker volume rm {names.edge}{unknown}"""
