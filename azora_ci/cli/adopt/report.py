"""Report what a person has to do after adopting: lines to fill in, environments, secrets, variables, rulesets.

Secrets and variables are read from the adopted workflows themselves, their explanations from the jobs' settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from azora_ci.cli.adopt import frameworks
from azora_ci.cli.adopt.compose.found import WEB, FoundService
from azora_ci.cli.adopt.discover import KUBERNETES, Application
from azora_ci.cli.adopt.plan import CONFIG, WORKFLOW_FOLDER, Adoption, template_folder
from azora_ci.core import config
from azora_ci.core.errors import BadInputError
from azora_ci.core.pipeline import JOBS, TOOLS
from azora_ci.core.variables import Variable, declared_variables
from azora_ci.gates.readiness import to_fill_in
from azora_ci.steps.runner import step_module

APPROVAL = "production-approval"
_DEFAULT = re.compile(r"\$\{\{ inputs\.\w+ \|\| '([^']*)' \}\}")
_REFERENCE = re.compile(r"\b(secrets|vars)\.([A-Za-z_][A-Za-z0-9_]*)(?:\s*\|\|\s*'([^']*)')?")
# An OIDC role replaces these three, and GitHub makes the token.
_ALTERNATIVE = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"}

# Read by other actions or by the workflow itself, not by a step.
OF_WORKFLOWS = {
    "ATTEST": "true: GitHub attests the record and the images; a private repository needs GitHub Enterprise for it",
    "AWS_BACKUP_ROLE_ARN": "role of database-backup alone (.github/aws/backup-role.json of azora-ci); AWS_ROLE_ARN counts without it",
    "AWS_READ_ROLE_ARN": "role of pre-deployment-validation alone (read-role.json); AWS_ROLE_ARN counts without it",
    "AWS_RECORD_ROLE_ARN": "role of records and rollback (record-role.json); AWS_ROLE_ARN counts without it",
    "AWS_ROLE_ARN": "AWS role that GitHub's OIDC token for this environment may assume (sub repo:OWNER/NAME:environment:…)",
    "AWS_ROLE_SECONDS": "how long the role's session lasts, in seconds; a database that takes an hour to back up needs more",
    "DATABASE_VIA_KUBERNETES": "true with target.kubernetes.database: hands KUBECONFIG_DATA to the jobs that reach the database",
    "DATABASE_VIA_SSH": "true with database.via_ssh: hands the SSH secrets (PROD_HOST, PROD_KEY, …) to the jobs that reach the database",
    "MIGRATIONS_OLD_VERSION": "true with [migrations.old_version]: hands the login that pulls images to database-backup, which tries them",
    "POSTGRESQL_MAJOR": "major version of the production database, such as 17, when the runner's image has another (ubuntu-24.04 has 16)",
}


@dataclass
class EnvironmentNeeds:
    """What one environment of the repository has to define: names of secrets, and variables with their defaults."""

    secrets: set[str] = field(default_factory=set)
    variables: dict[str, str] = field(default_factory=dict)


def _environment_name(job: Mapping[str, Any]) -> str:
    """Return the environment of a job; of one that a caller's input names the default."""
    environment = job.get("environment") or ""
    return _DEFAULT.sub(r"\1", environment["name"] if isinstance(environment, dict) else environment)


def environments(workflows: Mapping[str, str]) -> dict[str, EnvironmentNeeds]:
    """Return environment -> secrets and variables that its jobs read. ``workflows``: file name -> text.

    The environment "" stands for the repository: jobs without an environment and expressions outside jobs read its values only.
    """
    import yaml

    needs_by_environment: dict[str, EnvironmentNeeds] = {}
    for text in workflows.values():
        document = yaml.safe_load(text)
        parts = [(_environment_name(job), job) for job in document["jobs"].values()]
        for environment, part in [*parts, ("", document.get("env"))]:
            needs = needs_by_environment.setdefault(environment, EnvironmentNeeds())
            for kind, name, default in _references(part):
                if kind == "secrets":
                    needs.secrets.add(name)
                else:
                    needs.variables.setdefault(name, default)
    return {name: needs for name, needs in needs_by_environment.items() if name or needs.secrets or needs.variables}


def _defining(name: str, text: str) -> str:
    """Return the text that says in which environment each job runs: of a caller that is the workflow it calls."""
    return (template_folder() / name).read_text(encoding="utf-8") if f"/{WORKFLOW_FOLDER.as_posix()}/{name}@" in text else text


def _references(part: object) -> Iterator[tuple[str, str, str]]:
    for match in _REFERENCE.finditer(str(part)):
        yield match[1], match[2], match[3] or ""


def explanations() -> dict[str, Variable]:
    """Return environment variable -> its declaration, over all jobs; a declaration that requires the variable is preferred."""
    declared = [variable for job in (*TOOLS, *JOBS) for _, variable in declared_variables(step_module(job).Settings)]
    return {variable.name: variable for variable in sorted(declared, key=lambda variable: variable.required)}


def report(adoption: Adoption) -> str:
    """Return everything that a person has to do as text, most urgent first."""
    texts = {file.path.name: file.content for file in adoption.files}
    toml = texts.pop(CONFIG.name)
    texts = {name: _defining(name, text) for name, text in texts.items()}
    sections = [_discovered(adoption), frameworks.advice(adoption.folder), _lines(toml), *_environments(environments(texts)), _advice()]
    return "\n\n".join(section for section in sections if section) + "\n"


def _discovered(adoption: Adoption) -> str:
    application = adoption.application
    lines = [f"Files in {adoption.folder}:"]
    lines += [f"  {file.path}  ({file.state})" for file in adoption.files]
    try:
        config.load(adoption.folder / CONFIG)
    except BadInputError as error:
        lines.append(f"  it does not load: {error.what}")
    lines += ["", *(_kubernetes(application) if application.target == KUBERNETES else _compose(application)), *_choice(application)]
    lines += _migrations(application)
    return "\n".join(lines)


def _kubernetes(application: Application) -> Iterator[str]:
    cluster = application.cluster
    if cluster.files:
        yield f"Found in {', '.join(cluster.files)} ({', '.join(filter(None, (cluster.how, cluster.reason)))}):"
    else:
        yield "No manifests that run what is built here were found: its services are those of compose files and Dockerfiles."
    yield from (f"  {_described(service)}" for service in application.services)
    yield from (f"  left out: {name}, {reason}" for name, reason in application.left_out.items())
    if cluster.others:
        yield f"  not read: {', '.join(cluster.others[:9])} (--manifests PATH reads one, or several)"
    yield from (f"  {note}" for note in (*cluster.advice, *cluster.notes))
    yield from notes(application)


def _choice(application: Application) -> Iterator[str]:
    """Yield why a target was chosen, where another one could have been, or a person said it."""
    if application.target_reason:
        yield f"Target {application.target}: {application.target_reason} (--target kubernetes or docker_hosts chooses)"
    elif (found := (*application.cluster.files, *application.cluster.others)) and not application.cluster.services:
        others = ", ".join(found[:9])
        yield f"Kubernetes manifests that are not read, or run nothing that is built here: {others} (--manifests PATH reads them)"


def _compose(application: Application) -> Iterator[str]:
    files = ", ".join(application.compose_files)
    if files:
        yield f"Found in {files}{f' ({application.compose_reason})' if application.compose_reason else ''}:"
    else:
        yield "No compose file was found." if not application.other_compose_files else "No compose file is where production's usually are."
    yield from (f"  {_described(service)}" for service in application.services)
    if files and not any(service.source.startswith("service ") for service in application.services):
        yield (
            f"  nothing of it is deployed without the profile {' or '.join(application.profiles)}"
            if application.profiles
            else "  nothing is built here: all services run published images"
        )
    yield from (f"  left out: {name}, {reason}" for name, reason in application.left_out.items())
    yield from (f"  not read: {note}" for note in application.notes)
    if application.other_compose_files:
        yield f"  not read: {', '.join(application.other_compose_files[:9])} (--compose FILE reads one, or merges several)"
    yield from notes(application)


def notes(application: Application) -> Iterator[str]:
    """Yield what stops nothing, and surprises at the first release."""
    if application.tags and not any(tag.startswith("v") for tag in application.tags):
        yield f"Tags: {', '.join(application.tags)}: a tag without v in front starts no deployment; name releases v1.2.3"


def check_notes(adoption: Adoption) -> Iterator[str]:
    """Yield what ``--check`` notes beside problems: tags, and required checks that no workflow gives the commit of a release."""
    yield from notes(adoption.application)
    if adoption.application.target == KUBERNETES:
        yield from (*adoption.application.cluster.advice, *adoption.application.cluster.notes)
    with suppress(BadInputError):  # which is among the problems
        for check in config.load(adoption.folder / CONFIG).checks.required:
            if check.app in {None, "github-actions"} and check.name not in adoption.application.checks:
                yield (
                    f"Required check {check.name}: no workflow here has a job of this name that runs on every push to the default branch; "
                    "without a result on the release's commit the gate stays closed"
                )


def _described(service: FoundService) -> str:
    if service.kind != WEB:
        return f"{service.id} ({service.kind}{', ' + service.when if service.when else ''}{', singleton' if service.singleton else ''})"
    return f"{service.id} (port {service.port or '?'}, health {service.health_path or '?'})"


def _migrations(application: Application) -> Iterator[str]:
    """Yield what was found of migrations, and what would bypass them."""
    found, tool = application.prisma, application.migrator
    if found:
        yield f"Prisma: {found.schemas[0].describe()}{'' if application.prisma_dependency else '; package.json does not depend on it'}"
    elif found.next:
        yield f"Prisma 8 ({', '.join(found.next[:3])}): its migrations are not supported; [migrations] command can run its own command"
    else:
        yield f"No Prisma: {f'{tool.tool} migrates, found by {tool.source}' if tool else 'say in [migrations] what migrates the database'}"
    if len(found.schemas) > 1:
        yield "  more than one: azora-ci migrates one database; choose the folder, or a command that migrates all of them"
        yield from (f"  {other.describe()}" for other in found.schemas[1:])
    yield from (f"  left out: {schema}, its provider is {provider}" for schema, provider in found.others)
    yield from (f"  {line}" for line in bypasses(application))


def bypasses(application: Application) -> Iterator[str]:
    """Yield a warning for every service whose image migrates the database when it starts."""
    for service, migrating in application.self_migrating.items():
        yield f"{service} migrates at its own start: {migrating}. That bypasses the backup's proof: take it out of the image"


def _lines(toml: str) -> str:
    missing = to_fill_in(toml)
    if not missing:
        return ""
    return "\n".join([f"Still to be filled in, in {CONFIG}:", *(f"  line {number}: {hint}" for number, hint in missing)])


def _environments(needs_by_environment: Mapping[str, EnvironmentNeeds]) -> Iterator[str]:
    declared = explanations()
    for name, needs in needs_by_environment.items():
        lines = [_heading(name)]
        lines += [f"  secret {secret}{_optional(secret, declared)}: {_explain(secret, declared)}" for secret in sorted(needs.secrets)]
        lines += [
            f"  variable {variable} (optional): {_explain(variable, declared)}{f' [default: {default}]' if default else ''}"
            for variable, default in sorted(needs.variables.items())
        ]
        yield "\n".join(lines)


def _heading(environment: str) -> str:
    if not environment:
        return "Repository (Settings > Secrets and variables > Actions):"
    who = "required reviewers" if environment == APPROVAL else "no reviewers"
    return f"Environment {environment} (Settings > Environments): {who}; deployment branches and tags: {_admitted(environment)}"


def _optional(name: str, variables: Mapping[str, Variable]) -> str:
    return " (optional)" if name in variables and not variables[name].required else ""


def _admitted(environment: str) -> str:
    return "the default branch" if environment == "operations" else "tags v* and the protected default branch"


def _explain(name: str, variables: Mapping[str, Variable]) -> str:
    if name in OF_WORKFLOWS:
        return OF_WORKFLOWS[name]
    variable = variables.get(name)
    text = f"{variable.help}, for example {variable.example}" if variable else "handed to the services that name it in [services.*] secrets"
    return f"{text} (not needed with AWS_ROLE_ARN)" if name in _ALTERNATIVE else text


def _advice() -> str:
    return f"""Rulesets (Settings > Rules):
  tags v*: only release managers may create them; nobody may update or delete them
  the default branch: pull requests, and the required checks of a release commit

Good to know:
  Commit {WORKFLOW_FOLDER} and {CONFIG} to the default branch before the first tag.
  On a public repository anybody can read logs and artifacts, backup locations and records among them.
  GitHub keeps artifacts as long as the repository allows (90 days on public ones); the archive in S3 keeps the year.
  On the free plan a private repository has no environments and no rulesets: whoever may push a branch reaches its secrets.
  Required reviewers of an environment need GitHub Enterprise on a private repository; [approval] distinct_person = true does not.
  Images are handed over as artifacts of one day; the free plan has 500 MB for them: [build] isolation = "none" builds in place.
  The edge bounds what is under way: services of WebSockets, streams or bodies above 16 MiB need timeout_seconds = 0.
  Tags pushed with GITHUB_TOKEN start no workflow: push release tags as a person or an app."""
