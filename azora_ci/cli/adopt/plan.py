"""Write the workflows and the configuration into an application's repository, and check what was written earlier.

The first line of an adopted workflow holds the SHA-256 of everything below it. As long as that digest is correct, nobody has
changed the file and a newer version may replace it; a changed file is replaced with ``--force`` only.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from azora_ci.cli.adopt import caller, deploy_toml
from azora_ci.cli.adopt.discover import HOSTS, KUBERNETES, Application, Wanted, discover
from azora_ci.cli.common import repository_problems
from azora_ci.core import config
from azora_ci.core.documents import UnreadableError, read_toml
from azora_ci.core.environment import PRESENT
from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError
from azora_ci.gates.readiness import Problem

WORKFLOWS = ("deploy-production.yml", "rollback-production.yml", "restore-drill.yml")
# The end of a step's command -> the part of ``Named`` that holds the secrets handed to it.
SECRETS_TO = {'scripts/gradual_rollout.py"': "service_secrets", 'scripts/build_and_push.py"': "build_secrets"}
TOLD = 'scripts/pre_deployment_validation.py"'  # the end of the command of the step that is told which secrets are set
WORKFLOW_FOLDER = Path(".github/workflows")
CONFIG = Path(".github/deploy-production.toml")
REPOSITORY = "Azora-OS/azora-ci"  # where the actions setup and toolchain are published
_OUR_ACTIONS = re.compile(r"\$/\.github/actions/(?P<name>setup|toolchain)")  # $/: of the repository and commit that holds the workflow
_STAMP = re.compile(r"# Adopted from (?P<action>\S+@[0-9a-f]{40}); sha256 of what follows: (?P<digest>[0-9a-f]{64})\n")
_SERVICE_SECRETS = re.compile(r"^(?P<indent> *)# Secrets of services:.*\n", re.MULTILINE)
_BUILD_SECRETS = re.compile(r"^(?P<indent> *)# Secrets of builds:.*\n", re.MULTILINE)
_PRESENCE = re.compile(r"^(?P<indent> *)# Presence of secrets:.*\n", re.MULTILINE)
_CLUSTERS = re.compile(r"^ *id-token: write # where KUBECONFIG_DATA .*\n", re.MULTILINE)
REACH_CLUSTERS = ("gradual-rollout", "smoke-tests")  # jobs that need no OIDC token for anything else
_PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SetupAction:
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
    """A file to be adopted. ``state``: new, same, outdated (stamped and unchanged since), changed (by somebody), kept (configuration)."""

    path: Path
    content: str
    existing: str | None
    state: str

    def diff(self) -> str:
        """Return the unified diff from the existing file to the content that this version writes."""
        existing, content = (self.existing or "").splitlines(keepends=True), self.content.splitlines(keepends=True)
        return "".join(difflib.unified_diff(existing, content, f"{self.path} (there)", f"{self.path} (this version)"))


@dataclass(frozen=True)
class Adoption:
    """The plan for one repository: the files to adopt, and what was discovered about the application."""

    folder: Path
    files: tuple[PlannedFile, ...]
    application: Application


def template_folder() -> Path:
    """Return the folder of the workflows: inside the installed package, or ``.github/workflows`` of a checkout."""
    packaged = _PACKAGE / "_workflows"
    return packaged if packaged.is_dir() else _PACKAGE.parent / WORKFLOW_FOLDER


@dataclass(frozen=True)
class Named:
    """What a configuration names that copies of the workflows must list: secrets of the services' instances, and of their builds.

    ``cluster``: whether the target is one, to which jobs may have to show who they are.
    """

    service_secrets: tuple[str, ...] = ()
    build_secrets: tuple[str, ...] = ()
    cluster: bool = False


def workflow(name: str, action: SetupAction, named: Named = Named()) -> str:
    """Return a workflow's text for an application's repository: with the set-up action pinned and the stamp as its first line.

    The rollout step gets the secrets of services in its environment, the pushing step those of builds. Raises BadInputError for a name
    that a secret may not have, and when the written YAML does not say what is meant.
    """
    _refuse_names([*named.service_secrets, *named.build_secrets])
    template = (template_folder() / name).read_text(encoding="utf-8")
    text = pinned(template, action)
    text = text if named.cluster else _CLUSTERS.sub("", text)
    text = _SERVICE_SECRETS.sub(lambda marker: "".join(_secret_lines(text, marker, named.service_secrets)), text)
    text = _BUILD_SECRETS.sub(lambda marker: "".join(_secret_lines(text, marker, named.build_secrets)), text)
    text = _PRESENCE.sub(lambda marker: "".join(_presence_lines(text, marker, named)), text)
    _compare(name, template, text, action, named)
    return _stamped(text, action)


def called(name: str, action: SetupAction) -> str:
    """Return the text of a workflow that calls the published one: what services' secrets are called stays out of it."""
    template = (template_folder() / name).read_text(encoding="utf-8")
    return _stamped(caller.render(name, template, action.repository, action.commit), action)


def is_reusable(folder: Path) -> bool:
    """Say whether the adopted deployment workflow calls the published one."""
    text = _read(folder / WORKFLOW_FOLDER / WORKFLOWS[0]) or ""
    return f"/{(WORKFLOW_FOLDER / WORKFLOWS[0]).as_posix()}@" in text


def _stamped(text: str, action: SetupAction) -> str:
    return f"# Adopted from {action}; sha256 of what follows: {_digest(text)}\n{text}"


def pinned(text: str, action: SetupAction) -> str:
    """Return a workflow's text with every action of this project pinned to one repository and commit."""
    return _OUR_ACTIONS.sub(lambda match: f"{action.repository}/.github/actions/{match['name']}@{action.commit}", text)


def _secret_lines(text: str, marker: re.Match[str], names: Iterable[str]) -> Iterator[str]:
    yield marker[0]
    for name in names:
        if not re.search(rf"^ *{name}:", _step(text, marker), re.MULTILINE):
            yield f"{marker['indent']}{name}: ${{{{ secrets.{name} }}}}\n"


def _presence_lines(text: str, marker: re.Match[str], named: Named) -> Iterator[str]:
    """Yield lines that tell a step whether secrets are set of which it does not get the values."""
    yield marker[0]
    for name in _told(named):
        if not re.search(rf"^ *{name}:", _step(text, marker), re.MULTILINE):
            yield f"{marker['indent']}{PRESENT}{name}: ${{{{ secrets.{name} != '' }}}}\n"


def _told(named: Named) -> list[str]:
    """Return the secrets of which the validation is told whether they are set."""
    return sorted({*named.service_secrets, *named.build_secrets, "SLACK_WEBHOOK"})


def _step(text: str, marker: re.Match[str]) -> str:
    """Return the lines of the step that holds a marker."""
    return text[text.rindex("- name:", 0, marker.start()) : text.index(" run: ", marker.end())]


def _refuse_names(names: Iterable[str]) -> None:
    from azora_ci.steps.job import own_variables

    own = own_variables()
    refused = [name for name in names if not config.names.may_be_secret(name, own)]
    if refused:
        raise BadInputError(
            "A service's secret may not have this name",
            what=", ".join(map(repr, refused)),
            where=f"services.*.secrets in {CONFIG}",
            next_step="use capital letters, digits and _, and no name that azora-ci or the runner reads itself",
        )


def _compare(name: str, template: str, text: str, action: SetupAction, named: Named) -> None:
    """Raise BadInputError unless a written workflow, parsed back, is the template with our actions pinned and what is named handed over."""
    import yaml

    expected = yaml.safe_load(pinned(template, action))
    for job in () if named.cluster else REACH_CLUSTERS:
        expected["jobs"].get(job, {}).get("permissions", {}).pop("id-token", None)
    for step in (step for job in expected["jobs"].values() for step in job.get("steps", [])):
        for script, secrets in SECRETS_TO.items():
            if str(step.get("run", "")).endswith(script):
                step["env"] |= {secret: f"${{{{ secrets.{secret} }}}}" for secret in getattr(named, secrets)}
        if str(step.get("run", "")).endswith(TOLD):
            told = set(_told(named)) - set(step["env"])
            step["env"] |= {f"{PRESENT}{secret}": f"${{{{ secrets.{secret} != '' }}}}" for secret in told}
    try:
        written = yaml.safe_load(text)
    except yaml.YAMLError:
        written = None
    if written != expected:
        raise BadInputError(
            "The adopted workflow would not be what is meant",
            what="parsed back, it differs from the template with our actions pinned and the services' secrets added",
            where=name,
            next_step=f"check the names in services.* of {CONFIG}; nothing was written",
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def plan(
    folder: Path,
    action: SetupAction | None = None,
    *,
    reusable: bool | None = None,
    wanted: Wanted | None = None,
) -> Adoption:
    """Return what adopting would write. Without ``action``, workflows keep the commit that they pin now. Raises BadInputError.

    ``reusable``: callers of the published workflows instead of copies; None: what is there already, else copies.
    ``wanted``: what of the repository to read. A configuration that is there already says the target, unless a person does.
    """
    if not (folder / ".git").exists():
        raise BadInputError(
            "Not a repository",
            what=f"{folder} has no .git",
            where="PATH",
            next_step="give the top folder of the application's git repository",
        )
    refuse_links(folder)
    chosen = wanted or Wanted()
    application = discover(folder, wanted=replace(chosen, target=chosen.target or _kept_target(folder)))
    configuration = _configuration(folder, application)
    named = names_in(configuration.content)
    pinned = action or pinned_action(folder)
    calls = is_reusable(folder) if reusable is None else reusable
    texts = {name: called(name, pinned) if calls else workflow(name, pinned, named) for name in WORKFLOWS}
    workflows = [_workflow_file(folder, name, text) for name, text in texts.items()]
    return Adoption(folder, (*workflows, configuration), application)


def _kept_target(folder: Path) -> str | None:
    """Return the target of the configuration that is there; None without one, and for a target that adopt does not write."""
    try:
        kind = read_toml(_read(folder / CONFIG) or "").get("target", {}).get("kind")
    except (UnreadableError, AttributeError):
        return None
    return kind if kind in {HOSTS, KUBERNETES} else None


def refuse_links(folder: Path) -> None:
    """Raise BadInputError when an adopted file would be read or written outside of the repository, or something is in its way."""
    top = folder.resolve()
    for path in (CONFIG, *(WORKFLOW_FOLDER / name for name in WORKFLOWS)):
        steps = [folder / path, *(folder / parent for parent in path.parents)]
        link = next((step for step in steps if step.is_symlink() and not Path(os.path.realpath(step)).is_relative_to(top)), None)
        blocked = [step for step in steps if os.path.lexists(step) and not (step.is_file() if step == folder / path else step.is_dir())]
        if link or blocked:
            raise BadInputError(
                "A file of azora-ci cannot be where it belongs",
                what=f"{link} is a link that leads out of the repository" if link else f"{blocked[0]} is in the way: of another kind",
                where=str(folder / path),
                next_step="put files and folders of the repository itself there; nothing was read or written",
            )


def names_in(toml: str) -> Named:
    """Return what a configuration names that the workflows must list."""
    try:
        document = read_toml(toml)
        services = document.get("services", {})
        return Named(
            tuple(sorted({_secret(entry) for service in services.values() for entry in service.get("secrets", [])})),
            tuple(sorted({str(name) for service in services.values() for name in service.get("build", {}).get("secrets", [])})),
            document.get("target", {}).get("kind") == KUBERNETES,
        )
    except (UnreadableError, AttributeError, TypeError):
        return Named()  # check() reports the error in the configuration, with its line


def _secret(entry: object) -> str:
    """Return the secret's name of ``"X"`` or of ``{ env = "x", secret = "X" }``."""
    return str(entry.get("secret") if isinstance(entry, dict) else entry)


def pinned_action(folder: Path) -> SetupAction:
    """Return the set-up action that an adopted workflow is stamped with. Raises BadInputError when there is none."""
    path = folder / WORKFLOW_FOLDER / WORKFLOWS[0]
    stamp = _STAMP.match(path.read_text(encoding="utf-8")) if path.is_file() else None
    if stamp is None:
        raise BadInputError(
            "No commit of azora-ci to pin",
            what="nothing was adopted here before, and this azora-ci is not a git checkout whose commit could be taken",
            where=f"{path}, --ref",
            next_step=f"adopt it first; give --ref with the full commit id of {REPOSITORY} that the workflows shall use",
        )
    repository, _, commit = stamp["action"].partition("@")
    return SetupAction(repository, commit)


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
    return "outdated" if _is_as_adopted(existing) else "changed"


def _is_as_adopted(text: str) -> bool:
    stamp = _STAMP.match(text)
    return stamp is not None and stamp["digest"] == _digest(text[stamp.end() :])


def adopted_state(path: Path) -> str | None:
    """Return "adopted" for a workflow that nobody changed since it was written, "changed" for another, None where there is none."""
    text = _read(path)
    return None if text is None else "adopted" if _is_as_adopted(text) else "changed"


def _configuration(folder: Path, application: Application) -> PlannedFile:
    existing = _read(folder / CONFIG)
    if existing is None:
        return PlannedFile(CONFIG, deploy_toml.render(application), None, "new")
    return PlannedFile(CONFIG, existing, existing, "kept")


def write(adoption: Adoption, *, force: bool = False) -> list[Path]:
    """Write new and outdated files, with ``force`` also changed ones; return the paths of the written files.

    An existing configuration is never replaced: it belongs to the application. Raises NotTrueError, before anything is written,
    when somebody changed a file and ``force`` is not set.
    """
    changed_files = [file for file in adoption.files if file.state == "changed"]
    if changed_files and not force:
        raise NotTrueError(
            "A file was changed",
            what="\n".join(f"{file.path} differs from every version that was adopted\n{file.diff()}" for file in changed_files),
            where=str(adoption.folder),
            next_step="move your changes elsewhere, or replace the file with --force",
        )
    files = [file for file in adoption.files if file.state in {"new", "outdated", "changed"}]
    for file in files:
        target = adoption.folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.content, encoding="utf-8")
    return [file.path for file in files]


def check(adoption: Adoption) -> None:
    """Raise an error that names all that stands before a deployment: files that are not this version's, and what the repository lacks.

    It is NotTrueError, or BadInputError where the configuration does not load.
    """
    step = "adopt again and commit the result"
    differing = [file for file in adoption.files if file.state not in {"same", "kept"}]
    problems = [
        Problem(str(file.path), f"{'missing' if file.existing is None else file.state}: not this version's\n{file.diff()}", step)
        for file in differing
    ]
    problems += repository_problems(adoption.folder, CONFIG)
    if not problems:
        return
    try:
        config.load(adoption.folder / CONFIG)
        kind: type[AzoraError] = NotTrueError
    except BadInputError:
        kind = BadInputError
    raise kind(
        "Adopted files differ from this version" if len(differing) == len(problems) else f"{len(problems)} problems before a deployment",
        what="\n".join(f"{problem}\n    next: {problem.next_step}" for problem in problems),
        where=str(adoption.folder),
        next_step="repair all of them, commit, and run --check again",
    )


def adopt(path: Path, *, action_ref: str, repository: str = REPOSITORY, force: bool = False, reusable: bool | None = None) -> list[Path]:
    """Write the workflows, pinned to ``repository@action_ref``, and the configuration into a repository; return the written paths."""
    return write(plan(path, SetupAction(repository, action_ref), reusable=reusable), force=force)
