"""smoke-tests: check that the deployed version answers: health endpoints, the database, and the configured critical endpoints.

After a failure the new version stays in place and a person must decide, as the guide says; ``ROLLBACK_ON_SMOKE_FAILURE=true``
takes traffic back instead, under the target's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from azora_ci.core.config import WEB, DatabaseSettings, HealthSettings, SmokeEndpoint
from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError
from azora_ci.core.markdown import escaped, table
from azora_ci.core.process import undisturbed
from azora_ci.core.settings import DatabaseAccess, Deployment, Health, ProductionHosts
from azora_ci.core.variables import truth, variable
from azora_ci.database.migrations import prisma
from azora_ci.database.migrations.history import AT_LEAST_ONE, ExpectedMigrations, compare_with_expected
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.database.server import server_facts
from azora_ci.health.answers import PROOF_NONE, PUBLIC, Answer, EdgeProof, Endpoint, classify, public_endpoint
from azora_ci.health.log import FILE_NAME as HEALTH_LOG
from azora_ci.health.probes import Prober, ProbeRequest, request_of
from azora_ci.rollback import previous_version
from azora_ci.steps.job import Job, production_database, recorded_host_keys
from azora_ci.targets.base import Owner, Target, TargetContext
from azora_ci.targets.proofs import are_needed, edge_proof
from azora_ci.targets.registry import target_of

PROBE_SECONDS = 10.0  # for one answer


@dataclass(frozen=True, kw_only=True)
class Settings(Deployment, Health, DatabaseAccess, ProductionHosts):
    """What smoke-tests reads."""

    rollback: bool = variable(
        "ROLLBACK_ON_SMOKE_FAILURE",
        "true: failed smoke tests take traffic back to the version before; false: they call for a person",
        example="false",
        parse=truth,
        default="false",
    )


@dataclass(frozen=True)
class HttpTest:
    """A test of one URL: its name, kind (health or endpoint), and the function that judges an answer: (passed, version, detail, and
    what proves the version).
    """

    name: str
    kind: str
    request: ProbeRequest
    service: str | None
    judge: Callable[[Answer], tuple[bool, str | None, str, str]]


def run(job: Job[Settings]) -> None:
    """Run every test and record its result. Raises NotTrueError when a test fails."""
    job.evidence.update(tests=[], smoke_status="failed", health={}, rollback=None)
    failed = examine(job, job.settings.version, job.evidence, expected_migrations(job), edge=_edge_proof(job))
    job.actions.output("smoke-status", job.evidence["smoke_status"])
    if not failed:
        return
    state = "the new version stays in place"
    if job.settings.rollback:
        state = _try_take_back(job, "; ".join(f"{test['name']}: {test['detail']}" for test in failed))
    raise failure(failed, state)


def expected_migrations(job: Job[Settings]) -> ExpectedMigrations:
    """Return the migrations that database-migrations left applied, or AT_LEAST_ONE with a printed note when its evidence is missing."""
    fragment = job.fragments.find("database-migrations")
    if fragment is None or fragment.status != "ok":
        job.say("- no evidence of database-migrations is here: only that the database has migrations can be tested")
        return AT_LEAST_ONE
    if fragment.evidence["tool"] != "prisma":
        return AT_LEAST_ONE  # of which ``_test_database`` asks Prisma's table only
    count = fragment.evidence["already_applied"] + fragment.evidence["migrations_applied"]
    return ExpectedMigrations("database-migrations left", count, tuple(migration["name"] for migration in fragment.evidence["applied"]))


def _edge_proof(job: Job[Settings]) -> EdgeProof | None:
    """Return what proves versions in public; None where nothing is to be proved, or, said in the log, nothing can be from this job."""
    try:
        return edge_proof(_target(job), job.config, job.log) if are_needed(job.config) else None
    except AzoraError as error:  # it may not have the secrets that reach the hosts
        job.say(f"- which version answers in public is not proved: {error.title}: {error.what}")
        return None


def examine(
    job: Job[Any],
    version: str,
    evidence: dict[str, Any],
    expected: ExpectedMigrations,
    services: Mapping[str, HealthSettings] | None = None,
    *,
    edge: EdgeProof | None = None,
) -> list[dict[str, Any]]:
    """Run every test against this version (with v), store tests, smoke_status and health in ``evidence``; return the failed tests.

    ``expected`` are the migrations that the database must have; ``services``: see ``http_tests``. The job's settings are ``Health``
    and ``DatabaseAccess``; ``edge``: what proves which release answers in public. Raises BadInputError when no critical
    endpoint is configured.
    """
    tests = http_tests(job, version, services, edge)
    evidence.update(tests=[], smoke_status="failed", health={}, version_proof={})
    _test_database(job, evidence, expected)
    _run_http_tests(job, tests, evidence)
    failed = [test for test in evidence["tests"] if not test["passed"]]
    evidence["smoke_status"] = "failed" if failed else "passed"
    _write_table(job, evidence)
    if not failed:
        job.tick(f"all {len(evidence['tests'])} smoke tests passed")
    return failed


def failure(failed: list[dict[str, Any]], state: str) -> NotTrueError:
    """Return the error for failed tests; ``state`` describes the state of production now."""
    return NotTrueError(
        "Smoke tests failed",
        what="\n".join(f"{test['name']}: {test['detail']} ({test['attempts']} attempts)" for test in failed) + f"\n{state}",
        where=", ".join(test["url"] or "PROD_DATABASE_URL" for test in failed),
        next_step="look at these services now; to take traffic back, follow the rollback instructions of this deployment",
    )


def http_tests(
    job: Job[Any], version: str, services: Mapping[str, HealthSettings] | None = None, edge: EdgeProof | None = None
) -> list[HttpTest]:
    """Return the tests of URLs for this version (with v). Raises BadInputError when no critical endpoint is configured.

    ``services``: ids of the services that this version has -> what they answer; the health of others is not tested. None: all, by the
    configuration.
    """
    if not job.config.smoke:
        raise BadInputError(
            "No critical endpoints are configured",
            what="smoke.endpoints is empty; a smoke test that tests nothing would be no evidence",
            where=str(job.settings.config_path),
            next_step='add at least one, such as endpoints = [{ name = "courses", url = "https://…/api/education/courses" }]',
        )
    settings = services or {}
    health = [
        _make_health_test(f"{service.title} health", public_endpoint(service, service.id, [version], edge))
        for service in (replace(service, health=settings.get(service.id, service.health)) for service in job.config.web)
        if services is None or service.id in services
    ]
    return health + [_make_endpoint_test(endpoint) for endpoint in job.config.smoke]


def _make_health_test(name: str, endpoint: Endpoint) -> HttpTest:
    def judge(answer: Answer) -> tuple[bool, str | None, str, str]:
        finding = classify(endpoint, answer)
        return finding.passed, finding.version, finding.detail, finding.version_proof

    return HttpTest(name, "health", request_of(endpoint), endpoint.service, judge)


def _make_endpoint_test(endpoint: SmokeEndpoint) -> HttpTest:
    def judge(answer: Answer) -> tuple[bool, str | None, str, str]:
        if answer.failure:
            return False, None, answer.detail, PROOF_NONE
        if answer.status != endpoint.status:
            return False, None, f"HTTP {answer.status}, expected {endpoint.status}", PROOF_NONE
        if endpoint.contains is not None and endpoint.contains.encode() not in answer.body:
            detail = f"HTTP {answer.status}, but {endpoint.contains!r} is not in the first {len(answer.body)} bytes"
            return False, None, detail, PROOF_NONE
        return True, None, f"HTTP {answer.status}", PROOF_NONE

    return HttpTest(endpoint.name, "endpoint", ProbeRequest(endpoint.url), None, judge)


def _run_http_tests(job: Job[Any], tests: list[HttpTest], evidence: dict[str, Any]) -> None:
    """Run all tests at once, then repeat the failed ones at every interval, up to the number of retries in the settings."""
    prober = Prober(job.clock)
    results: dict[str, dict[str, Any]] = {}
    pending = tests
    for attempt in job.clock.attempts(job.settings.health_retries, job.settings.health_interval, growth=1):
        answers = prober.fetch_all([test.request for test in pending], PROBE_SECONDS)
        for test, answer in zip(pending, answers, strict=True):
            passed, version, detail, proof = test.judge(answer)
            if test.service:
                evidence["version_proof"][test.service] = proof
            facts = {"url": test.request.url, "passed": passed, "status": answer.status, "version": version}
            timing = {"milliseconds": round(answer.milliseconds, 1), "attempts": attempt.number, "detail": detail}
            results[test.name] = {"name": test.name, "kind": test.kind, **facts, **timing}
            job.say(f"{'✓' if passed else '✗'} {test.name}: {detail} ({answer.milliseconds:.0f} ms, attempt {attempt.number})")
        job.log.write_json(HEALTH_LOG, (_health_line(test, results[test.name]) for test in pending))
        pending = [test for test in pending if not results[test.name]["passed"]]
        if not pending:
            break
    for test in tests:
        evidence["tests"].append(results[test.name])
        if test.service:
            evidence["health"][test.service] = "healthy" if results[test.name]["passed"] else "unhealthy"


def _health_line(test: HttpTest, result: Mapping[str, Any]) -> dict[str, Any]:
    outcome = "healthy" if result["passed"] else "failed"
    measured = {name: result[name] for name in ("status", "version", "milliseconds", "detail")}
    return {"phase": "smoke-tests", "service": test.service, "endpoint": test.name, "side": PUBLIC, "outcome": outcome, **measured}


def _test_database(job: Job[Any], evidence: dict[str, Any], expected: ExpectedMigrations) -> None:
    """Connect with the production URL; where Prisma migrates, compare its table of migrations with the expected migrations."""
    start = job.clock.monotonic()
    connection: dict[str, Any] = {}  # the jobs before this one recorded the host keys
    try:
        with production_database(job, connection) as url:
            passed, detail = _look_into(url, job.config.database, expected)
    except AzoraError as error:
        passed, detail = False, f"{error.title}: {job.log.masked(error.what)}"
    milliseconds = round((job.clock.monotonic() - start) * 1000, 1)
    facts = {"name": "Database connectivity", "kind": "database", "url": None, "passed": passed, "status": None, "version": None}
    evidence["tests"].append({**facts, "milliseconds": milliseconds, "attempts": 1, "detail": detail})
    evidence |= {name: connection[name] for name in ("database_transport",) if name in connection}
    evidence["health"]["database"] = "healthy" if passed else "unhealthy"
    job.say(f"{'✓' if passed else '✗'} Database connectivity: {detail} ({milliseconds:.0f} ms)")


def _look_into(url: DatabaseUrl, settings: DatabaseSettings, expected: ExpectedMigrations) -> tuple[bool, str]:
    """Return whether the database is as it must be, and the detail. Raises UnreachableError."""
    if settings.tool != "prisma":
        facts = server_facts(url)
        return True, f"{facts.database} answers; {'another tool migrates it' if settings.tool == 'command' else 'it has no migrations'}"
    schema = prisma.schema_of(url, settings.schema)
    standing = compare_with_expected(prisma.read_table(url, schema), expected)
    return standing.passed, f"{schema}.{prisma.TABLE}: {standing.detail}"


def _write_table(job: Job[Any], evidence: dict[str, Any]) -> None:
    rows = [
        (test["name"], "✓" if test["passed"] else "✗", test["status"], test["version"], f"{test['milliseconds']:.0f} ms", test["detail"])
        for test in evidence["tests"]
    ]
    rows += [
        (service.title, "–", None, None, "", f"not asked: a {service.kind} has no public address")
        for service in job.config.services
        if service.kind != WEB
    ]
    job.actions.summary(table(("smoke test", "passed", "status", "version", "time", "detail"), rows))


def _try_take_back(job: Job[Settings], reason: str) -> str:
    """Take traffic back to the previous version; return a sentence about the result, also when that was not possible."""
    try:
        return _take_back(job, reason)
    except AzoraError as error:  # the failed tests are what people must read first
        return _report_not_taken_back(job, f"{error.title}: {error.what} ({error.where})")


def _report_not_taken_back(job: Job[Settings], reason: str) -> str:
    job.evidence["rollback"] = {"to": None, "seconds_to_safe": None, "proved": False, "detail": reason}
    text = f"traffic was NOT taken back: {reason}"
    job.say(text)
    job.actions.summary(f"**{escaped(text)}**")
    return text


def _take_back(job: Job[Settings], reason: str) -> str:
    settings, target = job.settings, _target(job)
    with target.locked(Owner(settings.deployment_id, settings.run_url, settings.actor)):
        history = target.current()
        previous = history.before(settings.deployment_id)
        if history.serving != settings.deployment_id or previous is None:
            return _report_not_taken_back(job, "there is no version before this deployment, or this one does not serve")
        instances = previous_version.look(target, job.config, job.clock, before=previous, leaving=settings.deployment_id)
        if instances.sick:  # a new version that failed some tests is better than no version
            return _report_not_taken_back(job, instances.summary(previous.version))
        with undisturbed():
            returned = target.abort(history.releases[settings.deployment_id].release, f"smoke tests failed: {reason}")
    facts = {"to": returned.to, "seconds_to_safe": round(returned.seconds, 3), "proved": returned.proved, "detail": returned.detail}
    job.evidence["rollback"] = facts
    proof = "proved" if returned.proved else "NOT proved"
    text = f"traffic went back to {returned.to} in {returned.seconds:.2f} s, {proof}: {returned.detail}"
    job.say(text)
    job.actions.summary(f"**{escaped(text)}**")
    return text


def _target(job: Job[Settings]) -> Target:
    context = TargetContext(
        job.config,
        job.processes,
        job.clock,
        job.log_dir,
        job.settings.health_timeout,
        access=job.settings,
        recorded_host_keys=recorded_host_keys(job),
        spare_lost_hosts=True,
    )
    return target_of(context)
