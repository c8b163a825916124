"""Bring the workflows and the configuration into an application's repository, and say what a person still has to do there.

A workflow that was written here carries a line with the SHA-256 of everything below it. As long as that holds, nobody has
changed the file and a newer version may replace it; a changed file is only replaced when asked to.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from azora_ci import config, deploy_toml
from azora_ci.discover import Application, discover
from azora_ci.errors import BadInputError, NotTrueError

WORKFLOWS = ("deploy-production.yml", "rollback-production.yml", "restore-drill.yml")
WORKFLOW_FOLDER = Path(".github/workflows")
CONFIG = Path(".github/deploy-production.toml")
REPOSITORY = "Azora-OS/azora-ci"  # where the set-up action is published
_SETUP = re.compile(r"[\w.-]+/[\w.-]+/\.github/actions/setup@[0-9a-f]{40}(?: # .*)?")
_STAMP = re.compile(r"# Adopted from (?P<action>\S+@[0-9a-f]{40}); sha256 of what follows: (?P<digest>[0-9a-f]{64})\n")
_SERVICE_SECRETS = re.compile(r"^(?P<indent> *)# Secrets of services:.*\n", re.MULTILINE)
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Action:
    """The set-up action that adopted workflows use: repository ``owner/name`` and full commit id."""

    repository: str
    commit: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repository) or not re.fullmatch(r"[0-9a-f]{40}", self.commit):
            raise BadInputError(
                "Set-up action cannot be pinned",
                what=f"{self.repository}@{self.commit} is not owner/name@<full commit id of 40 hex digits>",
                where="--repository and --ref",
                next_step="give the repository that publishes azora-ci, and a commit of it: git rev-parse HEAD",
            )

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit}"


@dataclass(frozen=True)
class PlannedFile:
    """A file to be adopted. ``state``: new, same, outdated (ours, unchanged), changed (by somebody else), kept (configuration)."""

    path: Path
    content: str
    existing: str | None
    state: str

    def diff(self) -> str:
        """Return the unified diff from what is there to what this version writes."""
        before, after = (self.existing or "").splitlines(keepends=True), self.content.splitlines(keepends=True)
        return "".join(difflib.unified_diff(before, after, f"{self.path} (there)", f"{self.path} (this version)"))


@dataclass(frozen=True)
class Adoption:
    """What adopting means for one repository: the files, and what was discovered about the application."""

    folder: Path
    files: tuple[PlannedFile, ...]
    application: Application


def template_folder() -> Path:
    """Return the folder of the workflows: inside the installed package, or ``.github/workflows`` of a checkout."""
    packaged = _HERE / "_workflows"
    return packaged if packaged.is_dir() else _HERE.parent / WORKFLOW_FOLDER


def workflow(name: str, action: Action, service_secrets: Iterable[str] = ()) -> str:
    """Return a workflow's text as it stands in an application's repository, stamped.

    ``service_secrets`` are names that ``[services.*] secrets`` hands to instances; the rollout step gets them.
    """
    text = (template_folder() / name).read_text(encoding="utf-8")
    text = _SETUP.sub(f"{action.repository}/.github/actions/setup@{action.commit}", text)
    text = _SERVICE_SECRETS.sub(lambda found: "".join(_secret_lines(text, found, service_secrets)), text)
    return f"# Adopted from {action}; sha256 of what follows: {_digest(text)}\n{text}"


def _secret_lines(text: str, marker: re.Match[str], names: Iterable[str]) -> Iterator[str]:
    step = text[text.rindex("- name:", 0, marker.start()) : text.index(" run: ", marker.end())]
    yield marker[0]
    for name in sorted(set(names)):
        if not re.search(rf"^ *{name}:", step, re.MULTILINE):
            yield f"{marker['indent']}{name}: ${{{{ secrets.{name} }}}}\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def plan(folder: Path, action: Action | None = None) -> Adoption:
    """Return what would be written. Without ``action`` the one that is pinned there is kept. Raises BadInputError."""
    if not (folder / ".git").exists():
        raise BadInputError(
            "Not a repository",
            what=f"{folder} has no .git",
            where="PATH",
            next_step="give the top folder of the application's git repository",
        )
    application = discover(folder)
    configuration = _configuration(folder, application)
    secrets = service_secrets(configuration.content)
    pinned = action or pinned_action(folder)
    workflows = [_workflow_file(folder, name, workflow(name, pinned, secrets)) for name in WORKFLOWS]
    return Adoption(folder, (*workflows, configuration), application)


def service_secrets(toml: str) -> list[str]:
    """Return the names of secrets that the services of a configuration get."""
    try:
        services = tomllib.loads(toml).get("services", {})
        return sorted({str(name) for one in services.values() for name in one.get("secrets", [])})
    except (tomllib.TOMLDecodeError, AttributeError, TypeError):
        return []  # check() reports what is wrong with it, with its line


def pinned_action(folder: Path) -> Action:
    """Return the set-up action that an adopted workflow is stamped with. Raises BadInputError when there is none."""
    path = folder / WORKFLOW_FOLDER / WORKFLOWS[0]
    stamp = _STAMP.match(path.read_text(encoding="utf-8")) if path.is_file() else None
    if stamp is None:
        raise BadInputError(
            "No commit of azora-ci to pin",
            what="this azora-ci is not a git checkout, and nothing was adopted here before",
            where="--ref",
            next_step=f"give --ref with the full commit id of {REPOSITORY} that the workflows shall use",
        )
    repository, _, commit = stamp["action"].partition("@")
    return Action(repository, commit)


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _workflow_file(folder: Path, name: str, content: str) -> PlannedFile:
    path = WORKFLOW_FOLDER / name
    existing = _read(folder / path)
    return PlannedFile(path, content, existing, _state(existing, content))


def _state(existing: str | None, content: str) -> str:
    if existing is None:
        return "new"
    if existing == content:
        return "same"
    stamp = _STAMP.match(existing)
    return "outdated" if stamp and stamp["digest"] == _digest(existing[stamp.end() :]) else "changed"


def _configuration(folder: Path, application: Application) -> PlannedFile:
    existing = _read(folder / CONFIG)
    if existing is None:
        return PlannedFile(CONFIG, deploy_toml.render(application), None, "new")
    return PlannedFile(CONFIG, existing, existing, "kept")


def write(adoption: Adoption, *, force: bool = False) -> list[Path]:
    """Write what is new or outdated, with ``force`` also what somebody changed; return what was written.

    The configuration is never replaced: it is the application's own. Raises NotTrueError, before anything is written, when a
    file was changed and ``force`` is not given.
    """
    changed = [one for one in adoption.files if one.state == "changed"]
    if changed and not force:
        raise NotTrueError(
            "A file was changed",
            what="\n".join(f"{one.path} differs from every version that was adopted\n{one.diff()}" for one in changed),
            where=str(adoption.folder),
            next_step="move your changes elsewhere, or replace the file with --force",
        )
    written = [one for one in adoption.files if one.state in {"new", "outdated", "changed"}]
    for one in written:
        target = adoption.folder / one.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(one.content, encoding="utf-8")
    return [one.path for one in written]


def check(adoption: Adoption) -> None:
    """Raise NotTrueError with a diff unless the adopted files are this version's, BadInputError for a bad configuration."""
    differing = [one for one in adoption.files if one.state not in {"same", "kept"}]
    if differing:
        raise NotTrueError(
            "Adopted files differ from this version",
            what="\n".join(f"{one.path} ({'missing' if one.existing is None else one.state})\n{one.diff()}" for one in differing),
            where=str(adoption.folder),
            next_step="adopt again and commit the result",
        )
    config.load(adoption.folder / CONFIG)


def adopt(path: Path, *, action_ref: str, repository: str = REPOSITORY, force: bool = False) -> list[Path]:
    """Write the workflows, pinned to ``repository@action_ref``, and the configuration into a repository; return what was written."""
    return write(plan(path, Action(repository, action_ref)), force=force)
