"""pre-deployment-validation: check every gate of the release commit before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from azora_ci.clients.github import GitHub
from azora_ci.core import config
from azora_ci.core.config import GateSettings
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.markdown import code, table
from azora_ci.core.settings import Aws, DatabaseTransport, Deployment, PinnedHostKeys
from azora_ci.core.variables import Secret, number, truth, variable
from azora_ci.gates import branch, checks, commands, reachability
from azora_ci.gates.audit import gate
from azora_ci.gates.audit.verdict import NO_LEVEL
from azora_ci.gates.branch import BranchGates
from azora_ci.gates.checks import FAILED, PASSED, PENDING, ChecksVerdict, Observed, Required
from azora_ci.gates.reachability import Reached
from azora_ci.record import host_keys
from azora_ci.record.archive import Archive
from azora_ci.steps.application import build
from azora_ci.steps.job import Job, own_variables
from azora_ci.targets.registry import kind_of


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment, Aws, DatabaseTransport, PinnedHostKeys):
    """What pre-deployment-validation reads."""

    github_token: Secret = variable("GITHUB_TOKEN", "token that reads checks, statuses, actions and contents", example="ghs_…", secret=True)
    database_url: Secret | None = variable(
        "PROD_DATABASE_URL", "connection string; unset: the database's reachability is not checked here", example="postgresql://…",
        required=False, secret=True,
    )  # fmt: skip
    poll_seconds: float = variable(
        "CHECK_POLL_SECONDS", "seconds between two looks at pending checks", example="10", parse=number(0.05, 600), default="10"
    )
    may_be_down: bool = variable(
        "PRODUCTION_MAY_BE_DOWN", "true for a first deployment or the repair of an outage: endpoints that are not healthy close no gate",
        example="true", parse=truth, default="false",
    )  # fmt: skip


def run(job: Job[Settings]) -> None:
    """Pass every gate. Raises NotTrueError when a gate is closed, BadInputError, UnreachableError."""
    job.evidence |= {"checks": [], "commands": [], "not_checked": [], "recorded_host_keys": None}
    try:
        pass_configuration(job)
        github = open_github(job)
        gates = read_gates(job, github)
        pass_required_checks(job, github, gates.settings)
        pass_approval(job, github, gates)
        pass_reachability(job)
        read_recorded_host_keys(job)
        pass_audit(job, gates.settings)
        pass_build(job)
    finally:
        _write_summary(job)


# --- configuration ------------------------------------------------------------------------------------------------------


def pass_configuration(job: Job[Settings]) -> None:
    """Raise BadInputError for settings that later jobs would refuse only after the migrations or after 100 % of traffic."""
    kind_of(job.config).check(job.config)
    try:
        config.names.check(job.config.services, own_variables())
    except ValueError as error:
        raise BadInputError(
            "A service takes a name of azora-ci",
            what=str(error),
            where=str(job.settings.config_path),
            next_step="give the service's secret a name of its own, in the repository's secrets, too",
        ) from error
    if not job.config.smoke:
        raise BadInputError(
            "No critical endpoints",
            what="smoke.endpoints is empty: smoke-tests would refuse, after the new version has all traffic",
            where=str(job.settings.config_path),
            next_step="add at least one endpoint to [smoke] that must answer when a deployment is done",
        )


# --- what the application's own jobs report -----------------------------------------------------------------------------


def pass_build(job: Job[Settings]) -> None:
    """Judge what the job build reports of the application's commands. Raises NotTrueError for a failure, or without that evidence."""
    reported = job.fragments.require("build").evidence
    job.evidence["commands"] += [{**entry, "source": "reported"} for entry in reported["commands"]]
    commands.require_success(reported["commands"], build.demanded_commands(job.config), "build")
    problems = [entry["problem"] for entry in reported["dockerfiles"] if entry["problem"]]
    if problems:
        raise NotTrueError(
            "Images cannot be built",
            what="\n".join(f"{problem['where']}: {problem['what']}" for problem in problems),
            where=", ".join(problem["where"] for problem in problems),
            next_step="\n".join(dict.fromkeys(problem["next"] for problem in problems)),
        )
    if reported["tree"] is None and build.needs_tree(job.config):
        raise NotTrueError(
            "The application's tree is missing",
            what="the job build handed no tree over, and the migrations need it",
            where="fragment of build",
            next_step="re-run all jobs",
        )
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
    for difference in gates.differences:
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


def pass_required_checks(job: Job[Settings], github: GitHub, gates: GateSettings) -> None:
    """Wait until every required check of the commit has passed. Raises NotTrueError when one failed or stays pending."""
    settings = job.settings
    required = find_required_checks(job, github, gates)
    own_suite = None if settings.run_id == "0" else github.check_suite_of_run(settings.run_id)
    job.say(f"{len(required)} required checks of {settings.git_sha}; excluded: check suite {own_suite or '(none)'} of this run")
    started = job.clock.monotonic()
    verdict = await_verdict(job, github, required, own_suite, gates)
    job.evidence["waited_seconds"] = round(job.clock.monotonic() - started, 1)
    for finding in verdict.having(PASSED):
        job.tick(f"{finding} of {settings.git_sha[:12]}, required by {finding.required.source}")
    if verdict.state != PASSED:
        raise gate_error(verdict, settings.git_sha, gates.wait_minutes)


def find_required_checks(job: Job[Settings], github: GitHub, gates: GateSettings) -> list[Required]:
    """Return the checks that the configuration and the default branch's rules require. Raises BadInputError when there are none."""
    required = checks.required_by_configuration(gates.required)
    sources = str(job.settings.config_path)
    if gates.rulesets:
        default = github.default_branch()
        required += checks.required_by_rules(github.branch_rules(default))
        required += checks.required_by_protection(github.branch(default))
        sources += f", rulesets and protection of {default}"
    if not required:
        raise BadInputError(
            "No required checks",
            what="an empty list of checks is no gate: 0 names in checks.required, 0 from rulesets and branch protection",
            where=sources,
            next_step="name the checks that a release needs in checks.required",
        )
    return required


def await_verdict(
    job: Job[Settings], github: GitHub, required: list[Required], own_suite: int | None, gates: GateSettings
) -> ChecksVerdict:
    """Return the verdict when no check is pending, or the last verdict when the waiting time is over. Its findings become evidence."""
    limit = gates.wait_minutes * 60
    attempts_of = cache(lambda suite, _runs: github.job_attempts(suite))  # asked again only when a suite has other check runs
    for elapsed in job.clock.ticks(job.settings.poll_seconds, limit):
        results = current_results(github, job.settings.git_sha, required, own_suite, attempts_of)
        verdict = checks.judge(required, results, gates.allow_skipped)
        job.evidence["checks"] = [finding.document() for finding in verdict.findings]
        if verdict.state != PENDING:
            break
        pending = verdict.having(PENDING)
        names = ", ".join(map(str, pending))
        job.say(f"waiting for {len(pending)} of {len(verdict.findings)} checks: {names}; {elapsed:.0f} s of {limit:.0f} s")
    return verdict


def current_results(
    github: GitHub,
    commit: str,
    required: list[Required],
    own_suite: int | None,
    attempts_of: Callable[[int, frozenset[int]], dict[int, int]],
) -> list[Observed]:
    """Return the results of a commit that count. Asks GitHub for attempts and workflow runs only where they can change the verdict."""
    names = {check.name for check in required}
    check_runs = [run for run in github.check_runs(commit) if run["name"] in names]
    attempts: dict[int, int] = {}
    for suite, runs in checks.repeated_suites(check_runs).items():
        attempts |= attempts_of(suite, runs)
    workflow_runs = github.workflow_runs(commit) if any(check.workflow for check in required) else []
    return checks.observed(check_runs, github.statuses(commit), own_suite, attempts=attempts, workflow_runs=workflow_runs)


def gate_error(verdict: ChecksVerdict, commit: str, wait_minutes: float) -> NotTrueError:
    """Return the error that names every check that has not passed."""
    failed, pending = verdict.having(FAILED), verdict.having(PENDING)
    lines = [f"failed: {finding}, required by {finding.required.source}{_append_url(finding.url)}" for finding in failed]
    lines += [f"pending: {finding}, required by {finding.required.source}{_append_url(finding.url)}" for finding in pending]
    waited = "" if failed else f" after waiting {wait_minutes:g} minutes"
    absent = any(finding.kind == "missing" and finding.required.workflow for finding in pending)
    hint = "; a workflow that a ruleset demands must also run for pushes to the default branch" if absent else ""
    return NotTrueError(
        "Required checks have not passed",
        what=f"{len(lines)} of {len(verdict.findings)} are not passed{waited}\n" + "\n".join(lines),
        where=f"commit {commit}",
        next_step="repair or re-run the named checks, each in its own run (one of the same name elsewhere does not replace it), then "
        f"re-run this job; a skipped check counts only when checks.allow_skipped names it{hint}",
    )


def _append_url(url: str | None) -> str:
    return f" {url}" if url else ""


# --- approval ---------------------------------------------------------------------------------------------------------


def pass_approval(job: Job[Settings], github: GitHub, gates: BranchGates) -> None:
    """Record whether GitHub enforces an approval. Raises NotTrueError when a second person must have approved a change and has not."""
    distinct = gates.settings.distinct_person
    facts = job.evidence["approval"] = {**branch.read_enforcement(github), "distinct_person": distinct}
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


# --- production -------------------------------------------------------------------------------------------------------


def pass_reachability(job: Job[Settings]) -> None:
    """Check what this job can reach of production. Raises NotTrueError that names everything that does not answer."""
    failures: list[Reached] = []
    for finding in examine_production(job):
        document = finding.document()
        job.evidence["checks"].append(document)
        if finding.passed:
            job.tick(str(finding))
        elif finding.kind == "endpoint" and job.settings.may_be_down:
            job.actions.warning("Production is not healthy", f"{finding} ({finding.url}); accepted because PRODUCTION_MAY_BE_DOWN is true")
        else:
            failures.append(finding)
    for skipped in job.evidence["not_checked"]:
        job.say(f"- not checked: {skipped['name']}, {skipped['reason']}")
    if failures:
        raise NotTrueError(
            "Production cannot be reached",
            what="\n".join(map(str, failures)),
            where=", ".join(finding.url or finding.name for finding in failures),
            next_step="repair it; for a first deployment or the repair of an outage set PRODUCTION_MAY_BE_DOWN=true (endpoints only)",
        )


def examine_production(job: Job[Settings]) -> Iterator[Reached]:
    """Yield a finding for each part of production; a part that this job cannot reach is recorded as not checked, with the reason."""
    settings, deploy_config = job.settings, job.config
    skipped: list[dict[str, str]] = job.evidence["not_checked"]
    if settings.database_url is None or deploy_config.database.via_ssh:
        reason = "it is behind the SSH host" if deploy_config.database.via_ssh else "PROD_DATABASE_URL is not handed to this job"
        skipped.append({"name": "production database", "reason": reason})
    else:
        from azora_ci.database.postgres import DatabaseUrl

        parsed = DatabaseUrl.parse(settings.database_url.reveal())
        url = parsed.with_transport(settings.database_ca, plain_accepted=settings.database_plain)
        job.evidence["database_transport"] = url.protection.level
        yield reachability.database(url)
    if settings.aws_access_key_id is None:
        skipped.append({"name": "backup bucket", "reason": "no AWS credentials are handed to this job"})
    else:
        yield reachability.bucket(settings, deploy_config.backup.bucket)
    skipped += [{"name": name, "reason": reason} for name, reason in kind_of(deploy_config).checked_later.items()]
    if deploy_config.registry is None:
        skipped.append({"name": "registry", "reason": "the configuration has no [registry]"})
    else:
        yield reachability.registry(deploy_config.registry)
    for service in deploy_config.web:
        yield reachability.endpoint(service)


def read_recorded_host_keys(job: Job[Settings]) -> None:
    """Record the host keys of the last deployment as evidence for the jobs that connect. Raises NotTrueError for a doubtful record."""
    if not host_keys.are_needed(job.settings, job.config, by_target=kind_of(job.config).needs_host_keys):
        return
    if job.settings.aws_access_key_id is None:
        reason = "no AWS credentials are handed to this job"
        job.evidence["not_checked"].append({"name": "recorded host keys", "reason": reason})
        return
    archive = Archive.of(job.settings, job.settings.deploy_environment, job.config.backup, clock=job.clock, say=job.say)
    recorded = host_keys.newest(archive)
    for line in archive.set_aside:
        job.actions.warning("Not a record", f"{line}. It was set aside; find out who wrote it.")
    if recorded is None:
        job.say("- no deployment has recorded a host key yet: pin them, PROD_KNOWN_HOSTS")
        return
    job.evidence["recorded_host_keys"] = recorded.document()
    fingerprints = ", ".join(key["fingerprint"] for key in recorded.host_keys)
    job.tick(f"the hosts must show the keys that {recorded.location} recorded: {fingerprints}")


# --- audit --------------------------------------------------------------------------------------------------------------


def pass_audit(job: Job[Settings], gates: GateSettings) -> None:
    """Judge what the job audit reports of the application's packages, as the default branch demands it.

    Raises NotTrueError for findings, without that evidence, and when the tagged commit had another registry asked.
    """
    evidence = job.fragments.require("audit").evidence
    job.evidence["audit"] = gate.recorded(evidence, gates.audit, reported=True)
    asked, demanded = job.config.validation.audit.registry, gates.audit.registry
    if gates.audit.level != NO_LEVEL and asked != demanded:
        raise NotTrueError(
            "Another registry was asked",
            what=f"validation.audit.registry is {asked or 'unset'} in the tag and {demanded or 'unset'} on the default branch",
            where=str(job.settings.config_path),
            next_step="release a commit that names the registry of the default branch",
        )
    gate.close(evidence, gates.audit, job.clock.now().date(), actions=job.actions, say=job.say)


# --- summary -----------------------------------------------------------------------------------------------------------


def _write_summary(job: Job[Settings]) -> None:
    evidence = job.evidence
    rows = [(check["name"], check["source"], f"{'✓' if check['passed'] else '✗'} {check['conclusion']}") for check in evidence["checks"]]
    rows += [gate.row(evidence["audit"])] if "audit" in evidence else []
    for command in evidence["commands"]:
        outcome = f"{'✗' if command['exit_code'] else '✓'} exit code {command['exit_code']}, {command['seconds']} s"
        rows.append((code(" ".join(command["argv"])), command["purpose"], outcome))
    rows += [
        (code(entry["key"]), f"{evidence['gates']['branch']}, not the tag", f"{entry['branch']} counts, the tag has {entry['tag']}")
        for entry in evidence.get("gates", {}).get("differences", [])
    ]
    if "approval" in evidence:
        rows.append(
            (
                "approval by environment",
                None,
                f"enforced: {str(evidence['approval']['enforced']).lower()}, {evidence['approval']['reason']}",
            )
        )
    rows += [(skipped["name"], None, f"not checked: {skipped['reason']}") for skipped in evidence["not_checked"]]
    job.actions.summary(f"### Gates of {job.settings.version}\n\n{table(('Gate', 'Source', 'Result'), rows)}")
