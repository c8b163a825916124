"""pre-deployment-validation: try every gate before anything is changed, and report all that are closed together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from azora_ci.clients.git import Git
from azora_ci.clients.github import GitHub
from azora_ci.core import environment
from azora_ci.core.config import GateSettings
from azora_ci.core.config.gates import ADDRESSES
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.settings import Aws, DatabaseTransport, Deployment, ProductionHosts, ServiceSecrets
from azora_ci.core.variables import Secret, load, number, texts_by_name, texts_of, truth, unparsed, variable
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.gates import branch, checks, commands, migrations, production, readiness, report, results, squawk
from azora_ci.gates.audit import gate
from azora_ci.gates.branch import BranchGates
from azora_ci.gates.checks import PASSED, PENDING, ChecksVerdict
from azora_ci.gates.entry.emergency import Emergency, Entry
from azora_ci.gates.old_version import left_since
from azora_ci.gates.production import Means
from azora_ci.gates.readiness import Problem
from azora_ci.gates.report import Closed
from azora_ci.record import host_keys
from azora_ci.record.archive import Archive
from azora_ci.rollout.durations import Stages
from azora_ci.steps.application import build
from azora_ci.steps.job import Job, declarations, own_variables
from azora_ci.targets.base import IMAGES, TargetContext
from azora_ci.targets.registry import kind_of

ANSWER_SECONDS = 30.0  # for an instance, of which none is started here
WITHHELD = "not tried: it takes a login, and the release is not approved and checked yet"


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment, Aws, DatabaseTransport, ProductionHosts, ServiceSecrets, migrations.Policy, Emergency):
    """What pre-deployment-validation reads."""

    github_token: Secret = variable("GITHUB_TOKEN", "token that reads checks, statuses, actions and contents", example="ghs_…", secret=True)
    database_url: Secret | None = variable(
        "PROD_DATABASE_URL", "connection string of the production database", example="postgresql://…", required=False, secret=True
    )
    poll_seconds: float = variable(
        "CHECK_POLL_SECONDS", "seconds between two looks at pending checks", example="10", parse=number(0.05, 600), default="10"
    )
    may_be_down: bool = variable(
        "PRODUCTION_MAY_BE_DOWN", "true for the repair of an outage: endpoints that are not healthy close no gate",
        example="true", parse=truth, default="false",
    )  # fmt: skip
    variables: dict[str, str] | None = variable(
        "VARIABLES", "the repository's variables, of which later jobs read theirs: toJSON(vars)", example='{"CANARY_MINUTES": "5"}',
        parse=texts_by_name, required=False,
    )  # fmt: skip
    # What is wrong with these is one problem among others, so they are parsed by ``access_of``.
    prod_host: Secret | None = unparsed(ProductionHosts, "prod_host")
    prod_jump_host: Secret | None = unparsed(ProductionHosts, "prod_jump_host")
    prod_user: Secret | None = unparsed(ProductionHosts, "prod_user")
    prod_key: Secret | None = unparsed(ProductionHosts, "prod_key")


def run(job: Job[Settings]) -> None:
    """Try every gate. Raises one error for all that are closed: NotTrueError, BadInputError or UnreachableError."""
    job.evidence |= {"checks": [], "commands": [], "not_checked": [], "recorded_host_keys": None, "problems": []}
    closed = Closed()
    entry_of(job).begin()
    try:
        try_gates(job, closed)
        error = closed.error()
        if error is not None:
            raise error
    finally:
        job.evidence["problems"] = [problem.document() for problem in closed.problems]
        job.actions.summary(report.page(job.settings.version, job.log.masked_evidence(job.evidence)))


def try_gates(job: Job[Settings], closed: Closed) -> None:
    """Try the gates in the order in which they may be tried: production comes last, because it takes logins.

    Who pushes a tag writes the addresses that logins are sent to, so they wait until the release is known to be approved and checked.
    """
    closed.add("The repository is not ready", repository_problems(job))
    with closed.tried():
        job.config  # noqa: B018 - read here; without it no other gate can be tried
    if closed.errors and "config" not in vars(job):
        return
    closed.add("A variable cannot be used", variable_problems(job))
    examine_secrets(job, closed)
    with closed.tried():
        pass_build(job)
    examine_production(job, closed, withheld="" if examine_release(job, closed) else WITHHELD)


def examine_release(job: Job[Settings], closed: Closed) -> bool:
    """Try what GitHub and the default branch say of the release; return whether nothing of it is against using logins.

    The required checks are waited for only when nothing else is wrong.
    """
    doubts = Closed()
    with doubts.tried():
        github = open_github(job)
        gates = read_gates(job, github)
        with closed.tried():
            pass_audit(job, gates.settings)
        with doubts.tried():
            require_same_addresses(job, gates)
        with doubts.tried():
            pass_approval(job, github, gates)
        examine_entry(job, closed, gates.settings, withheld=bool(doubts.errors))
        waiting = 0 if closed.errors or doubts.errors else gates.settings.wait_minutes
        pass_required_checks(job, github, gates.settings, wait_minutes=waiting)
        if waiting:  # for so long that a freeze may have begun
            entry_of(job).ask_calendar(gates.settings, job.settings.version)
    closed.errors += doubts.errors
    closed.problems += doubts.problems
    return not doubts.errors


# --- the repository, and secrets ----------------------------------------------------------------------------------------


def repository_problems(job: Job[Settings]) -> list[Problem]:
    """Return what the release commit lacks, as adopt --check says it of a working folder."""
    path = job.settings.config_path
    problems = readiness.of_repository(Path(), path, own_variables(), Git(job.processes, Path()).ignores)
    if not problems:
        job.tick(f"{path} has no marks, placeholders or names of files that are not there")
    return problems


def variable_problems(job: Job[Settings]) -> list[Problem]:
    """Return what later jobs would refuse of the repository's variables, some of them only after the migrations."""
    values = job.settings.variables
    if values is None:
        return []
    problems: list[Problem] = []
    for name, declaration in declarations().items():
        try:
            if values.get(name) and not declaration.secret:
                declaration.parse(values[name])
        except ValueError as error:
            what = f"{values[name]!r} {error}: {declaration.help}"
            problems.append(Problem(name, what, f"correct the variable, such as {declaration.example}"))
    if not problems:
        try:
            load(Stages, values).durations(job.settings.deploy_environment)
        except BadInputError as error:
            problems.append(readiness.of_error(error))
    cluster, of_images = job.config.target.kubernetes, job.config.database.old_version and kind_of(job.config).artifact == IMAGES
    forwards = job.config.database_forward and not (cluster and cluster.in_cluster)
    for needed, name, consequence, table in (
        (job.config.database.via_ssh, "DATABASE_VIA_SSH", "no job gets the secrets of database.via_ssh", "database.via_ssh"),
        (forwards, "DATABASE_VIA_KUBERNETES", "no job gets the secret of target.kubernetes.database", "[target.kubernetes.database]"),
        (of_images, "MIGRATIONS_OLD_VERSION", "database-backup gets no login to pull what is in production", "[migrations.old_version]"),
    ):
        if needed and values.get(name) != "true":
            problems.append(Problem(name, f"is not true, so that {consequence}", f"set the variable to true, or take {table} out"))
    return problems


def examine_secrets(job: Job[Settings], closed: Closed) -> None:
    """Find the secrets that are wanted and not set; of those of services and builds only that is known here, not their values."""
    settings = job.settings
    own = {variable: bool(text) for variable, text in texts_of(Settings, settings).items()}
    wanted = readiness.own_secrets(job.config)
    present: dict[str, bool | None] = {name: own.get(name, False) for name in wanted}
    of_services = {name: wanting for name, wanting in readiness.wanted_secrets(job.config).items() if name not in wanted}
    present |= environment.presence(of_services, settings.service_secrets)
    problems = readiness.of_secrets(wanted | of_services, present, settings.deploy_environment)
    closed.add("A secret is missing", problems)
    job.evidence["secrets"] = {name: name not in readiness.places(problems) for name in sorted(wanted | of_services)}
    for name in (name for name, is_set in job.evidence["secrets"].items() if is_set):
        job.tick(f"secret {name} is set")
    if environment.presence(["SLACK_WEBHOOK"])["SLACK_WEBHOOK"] is False:
        job.say("- SLACK_WEBHOOK is not set: nobody is notified")


# --- what the application's own jobs report -----------------------------------------------------------------------------


def pass_build(job: Job[Settings]) -> None:
    """Judge what the job build reports of the application's commands. Raises NotTrueError for a failure, or without that evidence."""
    reported = job.fragments.require("build").evidence
    job.evidence["commands"] += [{**entry, "source": "reported"} for entry in reported["commands"]]
    commands.require_build(reported, build.demanded_commands(job.config), needs_tree=build.needs_tree(job.config))
    job.tick(f"build reports exit code 0 of {len(reported['commands'])} commands")


# --- required checks ----------------------------------------------------------------------------------------------------


def open_github(job: Job[Settings]) -> GitHub:
    """Return a client of GitHub. Raises BadInputError when the repository is not named."""
    settings = job.settings
    if settings.repository is None:
        raise BadInputError(
            "No repository",
            what="GITHUB_REPOSITORY is not set",
            where="environment variables of this step",
            next_step="GitHub sets it; export owner/name to replay the step",
        )
    return GitHub(settings.api_url, settings.repository, settings.github_token, clock=job.clock, say=job.say)


def read_gates(job: Job[Settings], github: GitHub) -> BranchGates:
    """Return the gates as the default branch has them, and show where the tagged commit differs. Raises BadInputError."""
    gates = branch.read_gates(github, job.settings.config_path)
    job.evidence["gates"] = gates.document()
    job.say(f"gates are those of {gates.branch} at {gates.commit[:12]}")
    for difference in (difference for difference in gates.differences if difference["key"] not in ADDRESSES):
        values = f"{difference['key']} is {difference['branch']} on {gates.branch}, {difference['tag']} in the tag"
        job.actions.warning("The tagged commit has other gates", f"{values}: what the branch says counts")
    if job.config.build.isolation == "none" and not gates.settings.builds_beside_secrets:
        raise NotTrueError(
            "The tagged commit builds beside secrets",
            what=f'build.isolation is "none" in the tag ({job.config.build.isolation_reason}), and not on {gates.branch}',
            where=f"{job.settings.config_path} of {job.settings.git_sha}",
            next_step=f"release a commit without it; or commit it to {gates.branch} first, with its reason",
        )
    return gates


def require_same_addresses(job: Job[Settings], gates: BranchGates) -> None:
    """Raise NotTrueError for a tag that has logins, backups or records sent elsewhere than the default branch says."""
    others = [difference for difference in gates.differences if difference["key"] in ADDRESSES]
    if others:
        named = [(other["key"], other["tag"] or "unset", other["branch"] or "unset") for other in others]
        raise NotTrueError(
            "The tagged commit has secrets or evidence sent elsewhere",
            what="\n".join(f"{key} is {tag} in the tag, {on_branch} on {gates.branch}" for key, tag, on_branch in named),
            where=f"{job.settings.config_path} of {job.settings.git_sha}",
            next_step=f"release a commit that names the addresses of {gates.branch}; or commit the new ones to {gates.branch} first",
        )


def pass_required_checks(job: Job[Settings], github: GitHub, gates: GateSettings, *, wait_minutes: float) -> None:
    """Wait until every required check of the commit has passed. Raises NotTrueError when one failed or stays pending."""
    settings = job.settings
    required = results.find_required(github, gates, str(settings.config_path))
    own_suite = None if settings.run_id == "0" else github.check_suite_of_run(settings.run_id)
    job.say(f"{len(required)} required checks of {settings.git_sha}; excluded: check suite {own_suite or '(none)'} of this run")
    started = job.clock.monotonic()
    attempts_of = cache(lambda suite, _runs: github.job_attempts(suite))  # asked again only when a suite has other check runs

    def look() -> ChecksVerdict:
        observed = results.current(github, settings.git_sha, required, own_suite, attempts_of)
        return checks.judge(required, observed, gates.allow_skipped)

    verdict = await_verdict(job, wait_minutes, look)
    job.evidence["waited_seconds"] = round(job.clock.monotonic() - started, 1)
    for finding in verdict.having(PASSED):
        job.tick(f"{finding} of {settings.git_sha[:12]}, required by {finding.required.source}")
    if verdict.state != PASSED:
        raise results.gate_error(verdict, settings.git_sha, wait_minutes)


def await_verdict(job: Job[Settings], wait_minutes: float, look: Callable[[], ChecksVerdict]) -> ChecksVerdict:
    """Return the verdict when no check is pending, or the last verdict when the waiting time is over. Its findings become evidence."""
    others, limit = job.evidence["checks"], wait_minutes * 60
    for elapsed in job.clock.ticks(job.settings.poll_seconds, limit):
        verdict = look()
        job.evidence["checks"] = [*(finding.document() for finding in verdict.findings), *others]
        if verdict.state != PENDING:
            break
        pending = verdict.having(PENDING)
        names = ", ".join(map(str, pending))
        job.say(f"waiting for {len(pending)} of {len(verdict.findings)} checks: {names}; {elapsed:.0f} s of {limit:.0f} s")
    return verdict


# --- approval ---------------------------------------------------------------------------------------------------------


def pass_approval(job: Job[Settings], github: GitHub, gates: BranchGates) -> None:
    """Record whether GitHub enforces an approval. Raises NotTrueError when a second person must have approved a change and has not."""
    distinct = gates.settings.distinct_person
    facts = job.evidence["approval"] = {**branch.read_enforcement(github, job.settings.deploy_environment), "distinct_person": distinct}
    job.say(f"approval by environment: {'enforced' if facts['enforced'] is True else 'NOT known to be enforced'}, {facts['reason']}")
    if not distinct:
        return
    since, commits, consent = branch.read_consent(github, job.settings.version, job.settings.git_sha, gates.branches)
    facts |= {"since": since, "commits": commits, "pull_requests": list(consent.pull_requests), "problems": list(consent.problems)}
    if consent.problems:
        raise NotTrueError(
            "Not everything was approved by a second person",
            what="\n".join(consent.problems),
            where=f"{commits} commits since {since or 'the beginning'}, [approval] distinct_person on {gates.branch}",
            next_step="have somebody else with write access approve the last commit of each pull request, then re-run this job",
        )
    job.tick(f"a second person approved each of {len(consent.pull_requests)} pull requests with {commits} commits since {since}")


# --- calendar and staging -----------------------------------------------------------------------------------------------


def entry_of(job: Job[Settings]) -> Entry:
    """Return the gates that an emergency passes."""
    return Entry(emergency=job.settings, actor=job.settings.actor, evidence=job.evidence, actions=job.actions, clock=job.clock, say=job.say)


def examine_entry(job: Job[Settings], closed: Closed, gates: GateSettings, *, withheld: bool) -> None:
    """Try the calendar, and whether this commit was in staging, whose archive is read unless logins are withheld."""
    with closed.tried():
        entry_of(job).ask_calendar(gates, job.settings.version)
    if gates.staging is None or gates.staging.environment == job.settings.deploy_environment:
        return
    if withheld:
        job.evidence["not_checked"].append({"name": gates.staging.environment, "reason": WITHHELD})
        return
    with closed.tried():
        entry_of(job).ask_staging(gates.staging, partial(open_archive, job), job.settings.version, job.settings.git_sha)


def open_archive(job: Job[Settings], environment: str) -> Archive:
    """Return the archive of an environment."""
    return Archive.of(job.settings, environment, job.config.backup, clock=job.clock, say=job.say)


# --- production -------------------------------------------------------------------------------------------------------


def examine_production(job: Job[Settings], closed: Closed, *, withheld: str) -> None:
    """Try what later jobs need of production: each answer, and each failure, becomes evidence. ``withheld``: why no login may be used."""
    settings, recorded, access = job.settings, "", None
    with closed.tried():
        recorded = "" if withheld else read_recorded_host_keys(job)
    with closed.tried():
        access = load(ProductionHosts, texts_of(ProductionHosts, settings))
    context = TargetContext(
        job.config, job.processes, job.clock, job.log_dir, ANSWER_SECONDS, access=access, recorded_host_keys=recorded,
        rollback_window_minutes=settings.rollback_window_minutes,
    )  # fmt: skip
    login = settings.docker_username, settings.docker_password
    means = Means(settings, settings, settings.database_url, login, withheld, lambda url: judge_migrations(job, closed, url))
    consultation = production.consult(context, means)
    if consultation.database_transport is not None:
        job.evidence["database_transport"] = consultation.database_transport
    if consultation.serving is not None:
        archive = open_archive(job, settings.deploy_environment) if settings.aws_access_key_id else None
        with closed.tried():
            job.evidence["serving"] = consultation.serving | {"schema": left_since(archive, consultation.serving["deployment_id"])}
    job.evidence["not_checked"] += [{"name": name, "reason": reason} for name, reason in consultation.not_asked.items()]
    for finding in consultation.findings:
        job.evidence["checks"].append(finding.document())
        if finding.passed:
            job.tick(str(finding))
        elif finding.kind == "endpoint" and (consultation.first or settings.may_be_down):
            reason = "nothing was deployed yet" if consultation.first else "PRODUCTION_MAY_BE_DOWN is true"
            job.actions.warning("Production is not healthy", f"{finding} ({finding.url}); accepted because {reason}. {finding.next_step}")
        elif finding.stops:
            closed.add("Production is not ready", [finding.problem()])
        else:
            job.actions.warning("Production needs attention", f"{finding}\n{finding.next_step}")
    for skipped in job.evidence["not_checked"]:
        job.say(f"- not checked: {skipped['name']}, {skipped['reason']}")


def judge_migrations(job: Job[Settings], closed: Closed, url: DatabaseUrl) -> None:
    """Judge the pending migrations by production as it is now, which is only read: each finding stands at its file and line."""
    judged = migrations.Gate(job.settings, job.actions, job.say)
    evidence, problems = judged.judge(job.config.database, url, lambda names: squawk.remarks(names, job.processes))
    job.evidence |= evidence
    closed.add("The running version may not bear the migrations", problems)


def read_recorded_host_keys(job: Job[Settings]) -> str:
    """Return the last deployment's host keys as known_hosts, noted as evidence; empty: none needed. Raises NotTrueError where in doubt."""
    if not host_keys.are_needed(job.settings, job.config, by_target=kind_of(job.config).needs_host_keys):
        return ""
    if job.settings.aws_access_key_id is None:
        job.evidence["not_checked"].append({"name": "recorded host keys", "reason": "no AWS credentials are handed to this job"})
        return ""
    archive = open_archive(job, job.settings.deploy_environment)
    recorded = host_keys.newest(archive)
    for line in archive.set_aside:
        job.actions.warning("Not a record", f"{line}. It was set aside; find out who wrote it.")
    if recorded is None:
        job.say("- no deployment has recorded a host key yet: pin them, PROD_KNOWN_HOSTS")
        return ""
    job.evidence["recorded_host_keys"] = recorded.document()
    job.tick(f"the hosts must show what {recorded.location} recorded: {', '.join(key['fingerprint'] for key in recorded.host_keys)}")
    return recorded.known_hosts


# --- audit --------------------------------------------------------------------------------------------------------------


def pass_audit(job: Job[Settings], gates: GateSettings) -> None:
    """Judge what the job audit reports of the application's packages, as the default branch demands it.

    Raises NotTrueError for findings, without that evidence, and when the tagged commit had another registry asked.
    """
    evidence = job.fragments.require("audit").evidence
    job.evidence["audit"] = gate.recorded(evidence, gates.audit, reported=True)
    gate.require_registry(job.config.validation.audit.registry, gates.audit, str(job.settings.config_path))
    gate.close(evidence, gates.audit, job.clock.now().date(), actions=job.actions, say=job.say)
