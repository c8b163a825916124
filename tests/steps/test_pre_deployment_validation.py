"""These tests run pre-deployment-validation against the GitHub stand-in, a real PostgreSQL, S3 server, Envoy and HTTP endpoints."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from azora_ci.core import config
from azora_ci.record.archive import Archive
from azora_ci.rehearsal.standins.github import GitHubApi
from azora_ci.steps.runner import execute
from azora_ci.targets.envoy import state as envoy
from azora_ci.targets.envoy.edge import ADMIN_SOCKET
from azora_ci.targets.journal import Journal
from azora_ci.targets.local_processes.target import install_edge
from tests.conftest import DatabaseMaker
from tests.core.test_markdown import cells
from tests.gates.audit.test_advisories import LODASH
from tests.record import test_host_keys
from tests.support import ROOT, deploy_config, fragments_builder
from tests.support.docker_engine import PASSWORD, USER, running
from tests.support.edge_world import ENVOY, free_ports
from tests.support.hostile import BOMB, NESTED
from tests.support.sshd import Sshd
from tests.support.stores import Stores
from tests.support.waiting import until

SHA = "0123456789abcdef0123456789abcdef01234567"
HEALTHY: dict[str, Any] = {"status": "healthy", "version": "1.2.2"}


class Site:
    """A public site answers each path with a status and a JSON document from ``pages``."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, Any]] = {"/health": (200, HEALTHY)}
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, document = site.pages.get(self.path, (404, {}))
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start an edge; give the folder of its files."""
    folder = tmp_path_factory.mktemp("edge")
    (port,) = free_ports(1)
    path = deploy_config.write(
        folder / "deploy.toml", services={"api_gateway": deploy_config.service("API", f"http://127.0.0.1:{port}/health")}
    )
    bootstrap = install_edge(config.load(path), folder / "edge", port)
    with running(list(envoy.command(bootstrap, binary=ENVOY)), folder / "log"):
        until((folder / "edge" / ADMIN_SOCKET).exists, "Envoy listens")
        yield folder / "edge"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


FINDING = {
    "id": "GHSA-jf85-cpcp-j695", "severity": "critical", "package": "lodash", "version": "4.17.11", "title": "Prototype Pollution",
    "url": LODASH["url"], "fixed_in": "4.17.12", "lock_file": "package-lock.json",
}  # fmt: skip
LOCK_FILES = [{"path": "package-lock.json", "manager": "npm", "packages": 1, "left_out": []}]


@dataclass
class World:
    folder: Path
    api: GitHubApi
    site: Site
    edge: Path
    means: dict[str, str]  # what the workflow hands over to reach the database and the bucket
    bucket: str
    gates: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)
    on_branch: str | None = None  # text of the configuration on the default branch; None: what the tagged commit has

    audit: dict[str, Any] = field(default_factory=lambda: {"registry": None, "lock_files": [], "findings": []})
    build: dict[str, Any] = field(default_factory=dict)

    def run(self, **environ: str) -> int:
        return execute("pre-deployment-validation", self.environment() | environ)

    def report(self) -> None:
        """Leave what the jobs audit and build report: every command of the configuration ended well, but for ``build``."""
        demanded = [("build", argv) for argv in self.gates.get("build", [["true"]])] + [("prepare", ["npm", "ci"])]
        ran = [{"purpose": purpose, "argv": argv, "exit_code": 0, "seconds": 1.0} for purpose, argv in demanded]
        honest = {"commands": ran, "dockerfiles": [], "tree": {"sha256": "0" * 64, "bytes": 1, "entries": 1}}
        for job, evidence in (("audit", self.audit), ("build", honest | self.build)):
            part = fragments_builder.fragment(job, evidence=evidence)
            ours = {"deployment_id": "1764000000-012345", "run_id": "77", "git_sha": SHA}
            fragments_builder.receive(self.folder / "received", replace(part, **ours))

    def status_requests(self) -> int:
        return sum(path.endswith("/statuses") for path in self.api.requests)

    def environment(self) -> dict[str, str]:
        checks = {"required": ["test"], "build": [["true"]], "rulesets": False, "wait_minutes": 0}
        keys = {
            "public_url": f"http://{self.site.host}",
            "on_call": "#on-call",
            "services": {"api_gateway": deploy_config.service("API Gateway", f"http://{self.site.host}/health", command=["true"])},
            "smoke": {"endpoints": [{"name": "courses", "url": f"http://{self.site.host}/api/courses"}]},
            "edge": {"config_dir": str(self.edge)},
            "backup": {"location": f"s3://{self.bucket}/prod"},
        }
        config = deploy_config.write(self.folder / "deploy.toml", checks=checks | self.gates, **keys | self.sections)
        state = json.loads(self.api.state.read_text())
        self.api.write(**state | {"contents": {"deploy.toml": self.on_branch or config.read_text()}})
        self.report()
        return {
            "DEPLOY_CONFIG": config.name,
            "DEPLOYMENT_LOG_DIR": str(self.folder / "logs"),
            "RECEIVED_ARTIFACTS_DIR": str(self.folder / "received"),
            "NEEDS": fragments_builder.needs_of(self.folder / "received", "1764000000-012345"),
            "DEPLOYMENT_ID": "1764000000-012345",
            "VERSION": "v1.2.3",
            "GIT_SHA": SHA,
            "GITHUB_TOKEN": "the-token",
            "GITHUB_REPOSITORY": "azora/azora",
            "GITHUB_API_URL": self.api.url,
            "GITHUB_RUN_ID": "77",
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary"),
            "CHECK_POLL_SECONDS": "0.1",
            **self.means,
        }

    def serves(self, version: str) -> None:
        """Have a version in production, as the target's journal says it."""
        journal = Journal(self.folder / "state" / "journal.jsonl")
        journal.add("2026-11-20T11:00:00Z", "begin", "1763000000-0f0f0f", version=version, digests={}, previous=None)
        journal.add("2026-11-20T11:30:00Z", "promote", "1763000000-0f0f0f")

    @property
    def fragment(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / "logs" / "record" / "pre-deployment-validation.json").read_text())
        return document

    @property
    def evidence(self) -> dict[str, Any]:
        return dict(self.fragment["evidence"])

    @property
    def error(self) -> str:
        return str(self.fragment["error"]["what"])

    @property
    def log(self) -> str:
        return (self.folder / "logs" / "pre-deployment-validation.log").read_text()


@pytest.fixture
def world(
    tmp_path: Path, site: Site, edge: Path, postgres_cluster: DatabaseMaker, s3_server: Stores, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """Give a repository and a production that lack nothing, and of which 1.2.2 is deployed."""
    monkeypatch.chdir(tmp_path)
    migration = tmp_path / "prisma/migrations/1_start/migration.sql"
    migration.parent.mkdir(parents=True)
    migration.write_text("SELECT 1;\n")
    (tmp_path / "package-lock.json").write_text('{"lockfileVersion": 3, "packages": {}}')
    means = {**s3_server.environ, "PROD_DATABASE_URL": postgres_cluster.fresh()}
    with GitHubApi(tmp_path / "github.json", "the-token") as api:
        api.write(check_runs=[{"name": "test"}], runs={"77": 5})
        world = World(tmp_path, api, site, edge, means, s3_server.make_bucket(object_lock=True))
        world.serves("v1.2.2")
        yield world


def test_all_gates_open(world: World) -> None:
    world.gates = {"build": [["sh", "-c", "echo built; echo 0 warnings >&2"], ["sh", "-c", "exit 0"]]}
    assert world.run() == 0
    evidence = world.evidence
    assert [evidence["checks"][0]] == [
        {
            "name": "test",
            "source": "configuration",
            "kind": "check_run",
            "conclusion": "success",
            "passed": True,
            "url": "https://github.example/checks/1",
        },
    ]
    names = [(check["kind"], check["name"]) for check in evidence["checks"][1:]]
    local = ("loopback", "state dir", "archive dir", "config dir", "admin socket", "lock", "rollout", "instances")
    assert names == [
        ("database", "production database"),
        ("bucket", "backup bucket"),
        *(("target", name) for name in local),
        ("endpoint", "API Gateway before the rollout"),
    ]
    assert evidence["checks"][-1] == {
        "name": "API Gateway before the rollout",
        "source": "production",
        "kind": "endpoint",
        "conclusion": "HTTP 200, healthy, version 1.2.2",
        "passed": True,
        "url": f"http://{world.site.host}/health",
    }
    assert evidence["problems"] == []
    assert evidence["secrets"] == {"AWS_ACCESS_KEY_ID": True, "AWS_SECRET_ACCESS_KEY": True, "PROD_DATABASE_URL": True}
    assert [(command["purpose"], command["argv"], command["exit_code"], command["source"]) for command in evidence["commands"]] == [
        ("build", ["sh", "-c", "echo built; echo 0 warnings >&2"], 0, "reported"),
        ("build", ["sh", "-c", "exit 0"], 0, "reported"),
        ("prepare", ["npm", "ci"], 0, "reported"),
    ]
    assert {check["name"] for check in evidence["not_checked"]} == {"registry"}
    assert "0 warnings" not in world.log.replace("echo 0 warnings", "")  # nothing of the application is run here
    assert "| test | configuration | ✓ success |" in (world.folder / "summary").read_text()


HOSTS = {"edge_image": "r.example/edge@sha256:" + "0" * 64, "guard_image": "r.example/python@sha256:" + "1" * 64}


def test_all_that_is_wrong_is_reported_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad first day: marks and placeholders, files and secrets that are not there, a key with a passphrase, a red check."""
    monkeypatch.setenv("PRESENT_STRIPE_KEY", "false")
    monkeypatch.setenv("PRESENT_MAIL_KEY", "true")
    service = deploy_config.service(
        "API", "http://127.0.0.1/health", context="services/api", secrets=["STRIPE_KEY", "MAIL_KEY", "LATE_KEY"]
    )
    world.sections = {
        "public_url": "https://shop.example",
        "services": {"api": service},
        "smoke": {"endpoints": []},
        "target": {"kind": "docker_hosts", "docker_hosts": HOSTS},
        "edge": None,
        "registry": {"repository": f"127.0.0.1:{free_ports(1)[0]}/azora", "insecure": True},
        "backup": {"location": "s3://there-is-no-such-bucket/prod"},
    }
    (world.folder / "package-lock.json").unlink()
    world.api.write(check_runs=[{"name": "test", "conclusion": "failure"}], runs={"77": 5})
    world.gates = {"wait_minutes": 60}
    environment = world.environment()
    path = world.folder / "deploy.toml"
    path.write_text(path.read_text().replace('on_call = "#on-call"', 'on_call = "#on-call" # fill in: who is called'))
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "a passphrase", "-f", world.folder / "key"], timeout=30, check=True)
    access = {"PROD_HOST": "web1.azora.test", "PROD_USER": "operator", "PROD_KEY": (world.folder / "key").read_text()}
    missing = {"PROD_DATABASE_URL": "", "DOCKER_USERNAME": "release-bot"}
    assert execute("pre-deployment-validation", environment | access | missing) == 1
    problems = {problem["where"]: problem for problem in world.evidence["problems"]}
    said = "\n".join(f"{problem['where']}: {problem['what']}" for problem in world.evidence["problems"])
    for expected in (
        "is still to be filled in: who is called",
        "shop.example is reserved for examples",
        "r.example is reserved for examples",
        "the digest is all zeros",
        "public_health_url = http://127.0.0.1/health: users and this job reach it on their own machine only",
        "smoke.endpoints is empty",
        "there is no folder services/api",
        "there is no package-lock.json",
        "this secret is not set; wanted by services.api.secrets",
        "this secret is not set; wanted by database-backup",
        "the workflow does not say whether it is set",
        "PROD_KEY has a passphrase",
        "one of DOCKER_USERNAME and DOCKER_PASSWORD is set",
        "test (failure)",
    ):
        assert expected in said, said
    assert {"STRIPE_KEY", "LATE_KEY", "PROD_DATABASE_URL", "services.api.context", "smoke.endpoints"} <= set(problems)
    assert all(problem["next"] for problem in problems.values())
    assert world.evidence["secrets"]["MAIL_KEY"] is True
    assert (world.evidence["secrets"]["STRIPE_KEY"], world.evidence["secrets"]["PROD_DATABASE_URL"]) == (False, False)
    assert "a passphrase" not in world.log
    summary = (world.folder / "summary").read_text()
    assert f"### {len(world.evidence['problems'])} problems to be repaired before v1.2.3 is deployed" in summary
    assert summary.count("| services.api.context | ") == 1
    assert f"{len(world.evidence['problems'])} problems stop this deployment" == world.fragment["error"]["title"]
    not_tried = {entry["name"] for entry in world.evidence["not_checked"] if entry["reason"].startswith("not tried")}
    assert {"backup bucket", "production database", "production hosts", "public health addresses"} <= not_tried


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HEALTH_CHECK_RETRIES": "five"}, "HEALTH_CHECK_RETRIES: 'five' is not a whole number"),
        ({"CANARY_MINUTES": "0.1"}, "stages of 0.1, 10, 15 minutes"),
        ({"ISOLATION": "docker"}, "ISOLATION: 'docker' is none of namespaces, none"),
    ],
)
def test_a_variable_that_a_later_job_would_refuse_closes_the_gate(world: World, variables: dict[str, str], said: str) -> None:
    assert world.run(VARIABLES=json.dumps({"OF_THE_APPLICATION": "x", **variables})) in {1, 2}
    assert said in world.error
    assert world.run(VARIABLES=json.dumps({"OF_THE_APPLICATION": "x", "CANARY_MINUTES": "0.1", "SHORT_STAGES_REASON": "a test"})) == 0


def test_pending_checks_are_not_waited_for_when_something_else_is_wrong(world: World) -> None:
    world.api.write(check_runs=[{"name": "test", "status": "in_progress"}], runs={"77": 5})
    world.gates, world.sections = {"wait_minutes": 60}, {"smoke": {"endpoints": []}}
    assert world.run() == 1
    assert world.status_requests() == 1
    assert "pending: test (in_progress)" in world.error


def test_a_configuration_that_cannot_be_read_is_reported_with_its_marks(world: World) -> None:
    environment = world.environment()
    path = world.folder / "deploy.toml"
    path.write_text(path.read_text().replace('on_call = "#on-call"', 'oncall = "#on-call" # fill in: who is called'))
    assert execute("pre-deployment-validation", environment) == 1
    assert "who is called" in world.error
    assert "oncall" in world.error
    assert world.status_requests() == 0


@pytest.mark.parametrize(
    ("name", "wanted_by"),
    [("PROD_DATABASE_URL", "database-backup"), ("AWS_ACCESS_KEY_ID", "the archive"), ("AWS_SECRET_ACCESS_KEY", "the archive")],
)
def test_a_secret_of_later_jobs_that_is_not_set_closes_the_gate(world: World, name: str, wanted_by: str) -> None:
    assert world.run(**{name: ""}) == 1
    assert f"{name}: this secret is not set; wanted by {wanted_by}" in world.error
    assert world.evidence["secrets"][name] is False


def test_the_summary_shows_commands_and_checks_as_they_are(world: World) -> None:
    world.api.write(check_runs=[{"name": "test | <b>`unit`"}], runs={"77": 5})
    world.gates = {"required": ["test | <b>`unit`"], "build": [["sh", "-c", "echo `true` | cat\n"]]}
    assert world.run() == 0
    texts = cells((world.folder / "summary").read_text().partition("\n\n")[2])
    assert texts[:3] == ["test | <b>`unit`", "configuration", "✓ success"]
    assert "sh -c echo `true` | cat" in texts


def test_failed_check_closes_the_gate(world: World) -> None:
    world.api.write(check_runs=[{"name": "test", "conclusion": "failure"}, {"name": "lint", "conclusion": "success"}], runs={"77": 5})
    world.gates = {"required": ["test", "lint"], "wait_minutes": 10}
    assert world.run() == 1
    assert "1 of 2 are not passed" in world.error
    assert "failed: test (failure), required by configuration https://github.example/checks/1" in world.error
    assert [check["passed"] for check in world.evidence["checks"][:2]] == [False, True]
    assert "| test | configuration | ✗ failure |" in (world.folder / "summary").read_text()


def test_skipped_check_closes_the_gate_unless_it_is_allowed(world: World) -> None:
    world.api.write(check_runs=[{"name": "test", "conclusion": "skipped"}], runs={"77": 5})
    assert world.run() == 1
    assert "test (skipped)" in world.error
    world.gates = {"allow_skipped": ["test"]}
    assert world.run() == 0


def test_missing_check_is_waited_for_and_then_closes_the_gate(world: World) -> None:
    world.gates = {"required": ["test", "lint"], "wait_minutes": 0.01}
    assert world.run() == 1
    assert "1 of 2 are not passed after waiting 0.01 minutes\npending: lint (missing)" in world.error
    assert "waiting for 1 of 2 checks: lint (missing)" in world.log


def test_pending_checks_are_waited_for(world: World) -> None:
    world.api.write(
        check_runs=[{"name": "test", "status": "in_progress"}], statuses=[{"context": "security", "state": "pending"}], runs={"77": 5}
    )
    world.gates = {"required": ["test", "security"], "wait_minutes": 2}
    codes: list[int] = []
    # execute() catches signals, which Python allows in its main thread only: GitHub's side moves in the other one.
    mover = threading.Thread(target=_finish_checks_once_they_were_seen, args=(world,))
    mover.start()
    codes.append(world.run())
    mover.join()
    assert codes == [0]
    assert "waiting for 2 of 2 checks: test (in_progress), security (pending)" in world.log


def _finish_checks_once_they_were_seen(world: World) -> None:
    until(lambda: world.status_requests() >= 2, "the gate asks twice")
    world.api.write(check_runs=[{"name": "test"}], statuses=[{"context": "security", "state": "success"}], runs={"77": 5})


def test_cancellation_ends_the_waiting_and_is_recorded(world: World) -> None:
    world.api.write(check_runs=[{"name": "test", "status": "queued"}], runs={"77": 5})
    world.gates = {"wait_minutes": 60}
    script = ROOT / "scripts" / "pre_deployment_validation.py"
    process = subprocess.Popen([sys.executable, str(script)], env={**os.environ, **world.environment()}, stdout=subprocess.DEVNULL)
    until(lambda: world.status_requests() >= 2, "the gate asks twice")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 1
    assert world.fragment["status"] == "cancelled"
    assert world.evidence["checks"][0]["conclusion"] == "queued"


def test_own_check_run_of_the_same_name_does_not_count(world: World) -> None:
    world.api.write(check_runs=[{"name": "test", "suite": 5}], runs={"77": 5})
    assert world.run() == 1
    assert "test (missing)" in world.error
    world.api.write(check_runs=[{"name": "test"}, {"name": "test", "suite": 5, "status": "in_progress"}], runs={"77": 5})
    assert world.run() == 0


def test_a_failed_check_of_another_workflow_closes_the_gate(world: World) -> None:
    world.api.write(check_runs=[{"name": "test", "suite": 11, "conclusion": "failure"}, {"name": "test", "suite": 12}], runs={"77": 5})
    assert world.run() == 1
    assert "failed: test (failure), required by configuration https://github.example/checks/1" in world.error


def test_a_job_that_was_run_again_counts_by_its_last_attempt(world: World) -> None:
    failed, passed = {"name": "test", "suite": 11, "conclusion": "failure"}, {"name": "test", "suite": 11, "attempt": 2}
    world.api.write(check_runs=[failed, passed], runs={"77": 5})
    assert world.run() == 0
    world.api.write(check_runs=[failed, passed | {"attempt": 1}], runs={"77": 5})
    assert world.run() == 1  # one attempt has two jobs of the same name


def test_a_workflow_of_a_ruleset_is_a_gate(world: World) -> None:
    scan = ".github/workflows/scan.yml"
    rules = [{"type": "workflows", "parameters": {"workflows": [{"path": scan, "repository_id": 1}]}}]
    world.api.write(check_runs=[{"name": "test"}], rules=rules, runs={"77": 5})
    world.gates = {"rulesets": True, "wait_minutes": 0.01}
    assert world.run() == 1
    assert f"pending: {scan} (missing), required by ruleset" in world.error
    world.api.write(check_runs=[{"name": "test"}], rules=rules, workflow_runs=[{"path": scan}], runs={"77": 5})
    assert world.run() == 0
    assert {"name": scan, "kind": "workflow_run", "passed": True}.items() <= world.evidence["checks"][1].items()


def test_results_of_another_commit_do_not_count(world: World) -> None:
    world.api.write(check_runs=[{"name": "test", "head_sha": "f" * 40}], runs={"77": 5})
    assert world.run() == 1
    assert "test (missing)" in world.error


def test_rulesets_and_protection_add_their_checks(world: World) -> None:
    rule = {"type": "required_status_checks", "parameters": {"required_status_checks": [{"context": "lint", "integration_id": 15368}]}}
    world.api.write(
        check_runs=[{"name": "lint"}],
        statuses=[{"context": "audit", "state": "failure"}],
        rules=[rule],
        protection={"contexts": ["audit"], "checks": []},
        runs={"77": 5},
    )
    world.gates = {"required": [], "rulesets": True}
    assert world.run() == 1
    assert [(check["name"], check["source"], check["passed"]) for check in world.evidence["checks"][:2]] == [
        ("lint", "ruleset", True),
        ("audit", "branch protection", False),
    ]


def test_no_required_check_at_all_is_an_error(world: World) -> None:
    world.gates = {"required": [], "rulesets": True}
    assert world.run() == 2
    assert "an empty list of checks is no gate" in world.error


FAILED = {"purpose": "build", "argv": ["true"], "exit_code": 4, "seconds": 1.0}
COPY_LINK = {
    "title": "This BuildKit cannot build the Dockerfile",
    "what": "COPY --link",
    "where": "api/Dockerfile:3",
    "next": "a newer Docker",
}


@pytest.mark.parametrize(
    ("report", "refusal"),
    [
        ({"commands": [FAILED]}, "build: true ended with exit code 4\nprepare: npm ci was not run"),
        ({"commands": []}, "build: true was not run\nprepare: npm ci was not run"),
        ({"commands": [FAILED | {"argv": ["echo"], "exit_code": 0}]}, "build: true was not run"),
        ({"tree": None}, "build handed no tree over"),
        ({"dockerfiles": [{"service": "api", "problem": None}, {"service": "api", "problem": COPY_LINK}]}, "api/Dockerfile:3: COPY --link"),
    ],
)
def test_what_build_reports_closes_the_gate(world: World, report: dict[str, Any], refusal: str) -> None:
    world.build = report
    assert world.run() == 1
    assert refusal in world.error
    assert len(world.evidence["commands"]) == len(report.get("commands", [1, 1]))
    world.build = {}
    assert world.run() == 0


@pytest.mark.parametrize("job", ["audit", "build"])
def test_a_job_that_reports_nothing_closes_the_gate(world: World, job: str) -> None:
    environ = world.environment()
    needs = json.loads(environ["NEEDS"])
    needs[job]["outputs"] = {}
    assert execute("pre-deployment-validation", environ | {"NEEDS": json.dumps(needs)}) == 1
    assert f"No evidence of {job}" in world.fragment["error"]["title"]


def test_a_reported_vulnerability_closes_the_gate(world: World) -> None:
    world.sections = {"validation": {"audit": {"level": "high"}}}
    world.audit = {"registry": "https://npm.example", "lock_files": LOCK_FILES, "findings": [FINDING]}
    assert world.run() == 1
    assert "lodash 4.17.11" in world.error
    assert world.evidence["audit"]["findings"][0]["id"] == "GHSA-jf85-cpcp-j695"
    world.audit = {**world.audit, "findings": []}
    assert world.run() == 0
    assert (world.evidence["audit"]["source"], world.evidence["audit"]["findings"]) == ("reported", [])
    assert "| audit | package-lock.json | 1 production packages, 0 findings |" in (world.folder / "summary").read_text()


def test_a_deployment_without_an_audit_says_so(world: World) -> None:
    assert world.run() == 0
    assert (world.evidence["audit"]["level"], world.evidence["audit"]["reason"]) == ("none", "a test without packages")
    assert "| audit | configuration | not audited |" in (world.folder / "summary").read_text()


def test_wrong_token(world: World) -> None:
    assert world.run(GITHUB_TOKEN="another") == 2
    assert "Bad credentials" in world.error


def test_production_that_is_not_healthy_closes_the_gate_unless_it_may_be_down(world: World) -> None:
    world.site.pages["/health"] = (503, {"status": "unhealthy", "version": "1.2.2"})
    assert world.run() == 1
    assert "API Gateway before the rollout: HTTP 503; wanted: HTTP 200 and JSON with status 'healthy'" in world.error
    assert world.run(PRODUCTION_MAY_BE_DOWN="true") == 0
    assert world.evidence["checks"][-1]["passed"] is False


@pytest.mark.parametrize(
    ("answer", "lacking"),
    [
        ({"status": "ok", "version": "1.2.2"}, "says status 'ok'"),
        ({"status": "healthy"}, "names no version"),
        ({"status": "healthy", "version": "1.2.1"}, "answers version 1.2.1, expected 1.2.2"),
    ],
)
def test_the_running_version_is_judged_as_the_rollout_judges_it(world: World, answer: dict[str, str], lacking: str) -> None:
    """Later it would abort at 5 %, behind the migrations."""
    world.site.pages["/health"] = (200, answer)
    assert world.run() == 1
    assert lacking in world.error
    assert "wanted: HTTP 200 and JSON with status 'healthy'" in world.error
    assert "python -m azora_ci health URL" in world.fragment["error"]["next"]


def test_before_the_first_deployment_an_answer_is_a_note(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.folder / "state" / "journal.jsonl").unlink()
    world.site.pages["/health"] = (200, {"status": "ok"})
    assert world.run() == 0, world.error
    said = capsys.readouterr().out
    assert "says status 'ok'" in said
    assert "accepted because nothing was deployed yet" in said
    assert world.evidence["checks"][-1]["passed"] is False


@pytest.mark.parametrize("page", [(200, {}), (200, ["healthy"]), (200, {"status": "degraded", "version": "1"}), (301, HEALTHY), (404, {})])
def test_what_is_no_healthy_answer(world: World, page: tuple[int, Any]) -> None:
    world.site.pages["/health"] = page
    assert world.run() == 1


POISONS = [NESTED, BOMB, b'{"status": "healthy", "version": "\\ud800"}', b'{"status": "healthy", "version": 1e999}']


@pytest.mark.parametrize("poison", POISONS)
def test_a_hostile_health_document_closes_the_gate(world: World, poison: bytes) -> None:
    world.site.pages["/health"] = (200, poison)
    assert world.run() == 1
    assert "API Gateway before the rollout: HTTP 200 with a body that is not read" in world.error


def test_nobody_at_the_public_endpoint(world: World) -> None:
    world.site.close()
    assert world.run() == 1
    assert "no answer: connection refused" in world.error


def test_database_that_answers(world: World, postgres_cluster: DatabaseMaker) -> None:
    assert world.run(PROD_DATABASE_URL=postgres_cluster.fresh()) == 0
    assert [check["passed"] for check in world.evidence["checks"] if check["kind"] == "database"] == [True]


def test_database_that_does_not_answer_closes_the_gate(world: World, postgres_cluster: DatabaseMaker) -> None:
    url = postgres_cluster.fresh().replace("fresh_", "absent_")
    assert world.run(PROD_DATABASE_URL=url) == 1
    assert "production database" in world.error
    assert url not in world.log + world.error


LOGIN = {"DOCKER_USERNAME": USER, "DOCKER_PASSWORD": PASSWORD}


def registry_checks(world: World) -> list[tuple[str, bool]]:
    return [(check["name"], check["passed"]) for check in world.evidence["checks"] if check["kind"] == "registry"]


def test_a_login_that_may_push_is_tried_without_pushing(world: World, private_registry: str) -> None:
    world.sections = {"registry": {"repository": f"{private_registry}/azora", "insecure": True}}
    assert world.run(**LOGIN) == 0, world.error
    assert registry_checks(world) == [("registry, api_gateway", True)]
    assert "DOCKER_USERNAME and DOCKER_PASSWORD may push: an upload was begun and cancelled" in world.log
    assert PASSWORD not in world.log


@pytest.mark.parametrize(
    ("login", "said"),
    [
        ({}, "HTTP 401, UNAUTHORIZED authentication required; login: none is set"),
        (LOGIN | {"DOCKER_PASSWORD": "an-old-one"}, "HTTP 401"),
        ({"DOCKER_USERNAME": USER}, "one of DOCKER_USERNAME and DOCKER_PASSWORD is set, the other is not"),
        (LOGIN | {"PULL_USERNAME": "hosts"}, "one of PULL_USERNAME and PULL_PASSWORD is set, the other is not"),
        (LOGIN | {"PULL_USERNAME": USER, "PULL_PASSWORD": "an-old-one"}, "login: PULL_USERNAME and PULL_PASSWORD"),
    ],
)
def test_a_login_that_the_registry_refuses_closes_the_gate(world: World, private_registry: str, login: dict[str, str], said: str) -> None:
    world.sections = {"registry": {"repository": f"{private_registry}/azora", "insecure": True}}
    assert world.run(**login) in {1, 2}
    assert said in world.error, world.error
    assert any("registry" in name and not passed for name, passed in registry_checks(world))


def test_bucket_that_is_there(world: World, s3_server: Stores) -> None:
    world.sections = {"backup": {"location": f"s3://{s3_server.make_bucket(object_lock=True)}/prod"}}
    assert world.run(**s3_server.environ) == 0
    (bucket,) = [check for check in world.evidence["checks"] if check["kind"] == "bucket"]
    assert "versioning: on, Object Lock: on" in bucket["conclusion"]
    world.sections = {"backup": {"location": "s3://there-is-no-such-bucket/prod"}}
    assert world.run(**s3_server.environ) == 1
    assert "backup bucket" in world.error


def test_bucket_that_does_not_answer_closes_the_gate(world: World) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret-key"}
    assert world.run(**keys, AWS_ENDPOINT_URL_S3=f"http://{world.site.host}") == 1
    assert "backup bucket" in world.error


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    server.start()
    yield server
    server.stop()


def use_ssh(world: World, sshd: Sshd) -> dict[str, str]:
    """Put the database behind an SSH host; return what the workflow hands over to reach it."""
    world.sections = {"database": {"via_ssh": True}}
    return {"PROD_HOST": f"127.0.0.1:{sshd.port}", "PROD_USER": sshd.user, "PROD_KEY": sshd.key}


def test_host_keys_that_the_last_deployment_recorded_are_handed_on(world: World, s3_server: Stores, sshd: Sshd) -> None:
    access = use_ssh(world, sshd) | {"PROD_ACCEPT_NEW_HOST_KEY": "true"}
    assert world.run(**access) == 0, world.error
    assert world.evidence["recorded_host_keys"] is None
    assert "no deployment has recorded a host key yet" in world.log
    assert "✓ production database: PostgreSQL" in world.log

    archive = Archive(s3_server.open(world.bucket), "production")
    location = test_host_keys.keep(archive, 1764000000, test_host_keys.FIRST)
    assert world.run(**access) == 0, world.error
    recorded = world.evidence["recorded_host_keys"]
    assert (recorded["location"], recorded["host_keys"]) == (location, [test_host_keys.evidence(test_host_keys.FIRST)])

    assert world.run(**access, PROD_KNOWN_HOSTS=sshd.known_hosts) == 0, world.error
    assert world.evidence["recorded_host_keys"] is None  # the pinned host keys count
    assert world.run(**access, AWS_ACCESS_KEY_ID="") == 1
    assert "recorded host keys" in {check["name"] for check in world.evidence["not_checked"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"PROD_KEY": "not a key"}, "is not a private key in PEM or OpenSSH format"),
        ({"PROD_HOST": "web1 web2"}, "holds something that is not host or host:port"),
        ({"PROD_USER": "a b"}, "is not the name of a user"),
        ({"PROD_KNOWN_HOSTS": "127.0.0.1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHxx"}, "Host key"),
        ({"PROD_HOST": "127.0.0.1:1"}, "Production host cannot be reached"),
    ],
)
def test_access_that_is_no_use_closes_the_gate(world: World, sshd: Sshd, change: dict[str, str], said: str) -> None:
    access = use_ssh(world, sshd) | {"PROD_KNOWN_HOSTS": sshd.known_hosts}
    assert world.run(**access | change) in {1, 2, 3}
    assert said in world.error, world.error
    assert sshd.key.splitlines()[1] not in world.log


def test_a_key_with_the_line_ends_of_windows_is_taken(world: World, sshd: Sshd) -> None:
    access = use_ssh(world, sshd) | {"PROD_KNOWN_HOSTS": sshd.known_hosts}
    assert world.run(**access | {"PROD_KEY": sshd.key.replace("\n", "\r\n")}) == 0, world.error


def test_a_hostile_record_is_named_and_does_not_stop_the_gates(
    world: World, s3_server: Stores, sshd: Sshd, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = Archive(s3_server.open(world.bucket), "production")
    archive.bucket.put_once(archive.record_key("1764000000-abc123", 1), NESTED, content_type="application/json")
    assert world.run(**use_ssh(world, sshd), PROD_ACCEPT_NEW_HOST_KEY="true") == 0, world.error
    assert "production/1764000000-abc123/1.json (1000 bytes" in capsys.readouterr().out


# --- gates of the default branch -------------------------------------------------------------------------------------------


def branch_configuration(world: World, **gates: Any) -> str:
    """Return the text of a configuration whose [checks] have these keys, beside a table that this version does not know."""
    checks = {"required": ["test"], "build": [["true"]], "rulesets": False, "wait_minutes": 0}
    gates = {"backup": {"location": f"s3://{world.bucket}/prod"}, **gates}
    path = deploy_config.write(world.folder / "branch.toml", checks=checks | gates.pop("checks", {}), **gates)
    return path.read_text() + "[of_a_later_version]\n"


def test_gates_that_the_tagged_commit_took_away_count_nevertheless(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.gates = {"required": ["test"], "allow_skipped": ["security"]}
    world.on_branch = branch_configuration(world, checks={"required": ["test", "security"]})
    world.api.write(check_runs=[{"name": "test"}, {"name": "security", "conclusion": "failure"}], runs={"77": 5})
    assert world.run() == 1
    assert "security (failure)" in world.error
    assert world.evidence["gates"] == {
        "branch": "main",
        "commit": "b" * 40,
        "differences": [
            {"key": "checks.allow_skipped", "branch": None, "tag": '["security"]'},
            {"key": "checks.required", "branch": '["test", "security"]', "tag": '["test"]'},
        ],
    }
    assert "checks.required" in (world.folder / "summary").read_text()
    assert "what the branch says counts" in capsys.readouterr().out


EXCEPTION = 'exceptions = [{ id = "GHSA-jf85-cpcp-j695", reason = "not reachable from outside", expires = 2099-01-01 }]'


def test_an_audit_that_the_tagged_commit_weakened_counts_as_the_branch_has_it(world: World) -> None:
    world.api.write(check_runs=[{"name": "test"}], runs={"77": 5})
    world.audit = {"registry": "https://npm.example", "lock_files": LOCK_FILES, "findings": [FINDING]}
    strict = branch_configuration(world, validation={"audit": {"level": "high"}})
    world.sections, world.on_branch = {"validation": {"audit": {"level": "none", "reason": "nobody looks here"}}}, strict
    assert world.run() == 1
    assert "lodash" in world.error
    assert world.evidence["audit"]["level"] == "high"
    world.sections = {"validation": {"audit": {"level": "high"}}}
    world.on_branch = strict.replace('level = "high"', f'level = "high", {EXCEPTION}')  # a date of TOML's, as people write it
    assert world.run() == 0, world.error
    (difference,) = world.evidence["gates"]["differences"]
    assert (difference["key"], difference["tag"]) == ("validation.audit.exceptions", None)
    assert "2099-01-01" in difference["branch"]


def test_a_registry_that_only_the_tagged_commit_names_was_asked_in_vain(world: World) -> None:
    world.api.write(check_runs=[{"name": "test"}], runs={"77": 5})
    world.audit = {"registry": "https://knows-nothing.example", "lock_files": LOCK_FILES, "findings": []}
    world.sections = {"validation": {"audit": {"level": "high", "registry": "https://knows-nothing.example"}}}
    world.on_branch = branch_configuration(world, validation={"audit": {"level": "high"}})
    assert world.run() == 1
    assert "knows-nothing.example in the tag and unset on the default branch" in world.error


def test_a_build_beside_secrets_that_only_the_tagged_commit_has_closes_the_gate(world: World) -> None:
    world.api.write(check_runs=[{"name": "test"}], runs={"77": 5})
    commands: dict[str, Any] = {"commands": [["true"]]}
    beside = commands | {"isolation": "none", "isolation_reason": "the plan has 500 MB of artifacts"}
    world.sections, world.on_branch = {"build": beside}, branch_configuration(world, build=commands)
    assert world.run() == 1
    assert 'build.isolation is "none" in the tag (the plan has 500 MB of artifacts), and not on main' in world.error
    world.on_branch = branch_configuration(world, build=beside)
    assert world.run() == 0, world.error


@pytest.mark.parametrize("contents", [{}, {"deploy.toml": "= 1"}, {"deploy.toml": "[checks]\nrequired = 1\n"}])
def test_a_default_branch_without_a_readable_configuration_closes_the_gate(world: World, contents: dict[str, str]) -> None:
    environment = world.environment()
    world.api.write(check_runs=[{"name": "test"}], runs={"77": 5}, contents=contents)
    assert execute("pre-deployment-validation", environment) == 2
    assert "deploy.toml on main" in json.dumps(world.fragment["error"])
    assert world.status_requests() == 0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Give a registry that nobody may show a login; it answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def nobody_connected(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("doubt", ["a red check", "nobody approved", "another registry", "plain HTTP", "no registry"])
def test_no_login_is_sent_for_a_release_that_is_in_doubt(world: World, listener: socket.socket, doubt: str) -> None:
    registry = {"repository": f"127.0.0.1:{listener.getsockname()[1]}/x", "insecure": True}
    if doubt == "nobody approved":
        release_of(world, user={"login": "ada", "type": "User"})
    world.sections["registry"] = registry
    if doubt == "a red check":
        world.api.write(check_runs=[{"name": "test", "conclusion": "failure"}], runs={"77": 5})
    elif doubt == "another registry":
        world.on_branch = branch_configuration(world, registry=registry | {"repository": "ghcr.io/azora/azora"})
    elif doubt == "plain HTTP":
        world.on_branch = branch_configuration(world, registry=registry | {"insecure": False})
    elif doubt == "no registry":
        world.on_branch = branch_configuration(world)
    assert world.run(**LOGIN) == 1
    assert nobody_connected(listener)
    assert not [check for check in world.evidence["checks"] if check["kind"] in {"registry", "bucket", "database"}]
    reasons = {entry["name"]: entry["reason"] for entry in world.evidence["not_checked"]}
    wanted = {"registry", "backup bucket", "production database"}
    assert {name for name, reason in reasons.items() if reason.startswith("not tried: it takes a login")} == wanted
    assert ("registry.repository is" in world.error) == (doubt in {"another registry", "no registry"})


def test_backups_go_nowhere_else_than_the_default_branch_says(world: World, s3_server: Stores) -> None:
    world.on_branch = branch_configuration(world)
    world.sections = {"backup": {"location": f"s3://{s3_server.make_bucket(object_lock=True)}/prod"}}
    assert world.run() == 1
    assert "backup.location is" in world.error
    assert not [check for check in world.evidence["checks"] if check["kind"] == "bucket"]
    world.sections = {}
    assert world.run() == 0, world.error


def test_a_tagged_commit_cannot_have_unsigned_records_believed(world: World) -> None:
    """An older commit of the branch, from before signing was turned on, would have a forged record's host keys expected."""
    world.on_branch = branch_configuration(world, evidence={"signing": "kms:alias/azora"})
    assert world.run() == 1
    assert 'evidence.signing is unset in the tag, "kms:alias/azora" on main' in world.error
    assert not [check for check in world.evidence["checks"] if check["kind"] == "bucket"]
    world.on_branch = branch_configuration(world, evidence={"signing": "none"})  # what its absence says
    assert world.run() == 0, world.error


def test_a_check_of_another_app_does_not_count(world: World) -> None:
    world.gates = {"required": [{"name": "test", "app": "github-actions"}]}
    world.api.write(check_runs=[{"name": "test", "app": "evil-app", "app_id": 666}], runs={"77": 5})
    assert world.run() == 1
    assert "missing from app github-actions" in world.error
    world.api.write(check_runs=[{"name": "test"}], runs={"77": 5})
    assert world.run() == 0


# --- approval --------------------------------------------------------------------------------------------------------------

REVIEWERS = {"protection_rules": [{"type": "required_reviewers", "prevent_self_review": True, "reviewers": [{"type": "Team"}]}]}


@pytest.mark.parametrize(
    ("environments", "enforced", "reason"),
    [
        ({"production-approval": REVIEWERS}, True, "demands one of 1 reviewers, not by who started the run"),
        ({"production-approval": {"protection_rules": [{"type": "branch_policy"}]}}, False, "demands no reviewer"),
        ({"production-approval": {"protection_rules": [{"type": "required_reviewers", "reviewers": []}]}}, False, "demands no reviewer"),
        ({}, "unknown", "HTTP 404"),
    ],
)
def test_whether_an_approval_is_enforced_is_said(world: World, environments: dict[str, Any], enforced: object, reason: str) -> None:
    world.api.write(check_runs=[{"name": "test"}], runs={"77": 5}, environments=environments)
    assert world.run() == 0
    assert world.evidence["approval"]["enforced"] is enforced or world.evidence["approval"]["enforced"] == enforced == "unknown"
    assert reason in world.evidence["approval"]["reason"]
    assert f"enforced: {str(enforced).lower()}" in (world.folder / "summary").read_text()


def release_of(world: World, **review: Any) -> None:
    """Let the release hold one pull request of ada's, with a review."""
    person = {"login": "grace", "type": "User"}
    entry = {"user": person, "state": "APPROVED", "author_association": "MEMBER", "commit_id": "d" * 40} | review
    pull = {"number": 12, "user": {"login": "ada"}, "merged_at": "2026-11-24T11:00:00Z", "base": {"ref": "main"}, "head": {"sha": "d" * 40}}
    commits = [{"sha": character * 40, "author": {"login": "ada"}, "parents": [{}]} for character in "cd"]
    world.api.write(
        page_size=1, check_runs=[{"name": "test"}], runs={"77": 5}, tags=["v1.2.2", "v1.1.0", "v1.2.3", "v9.0.0", "vnext"],
        commits=commits, pulls=[pull | {"commits": ["c" * 40, "d" * 40]}], reviews={"12": [entry]},
    )  # fmt: skip
    world.sections = {"approval": {"distinct_person": True}}


def test_a_second_person_approved_everything_since_the_previous_release(world: World) -> None:
    release_of(world)
    assert world.run() == 0
    approval = world.evidence["approval"]
    assert (approval["since"], approval["commits"]) == ("v1.2.2", 2)
    assert approval["pull_requests"] == [{"number": 12, "author": "ada", "approved_by": ["grace"]}]
    assert "✓ a second person approved" in world.log


def test_nobody_else_approved(world: World) -> None:
    release_of(world, user={"login": "ada", "type": "User"})
    assert world.run() == 1
    assert "#12 of ada was approved by nobody else" in world.error
    assert world.evidence["approval"]["problems"] == ["#12 of ada was approved by nobody else"]


def test_the_tagged_commit_cannot_switch_the_second_person_off(world: World) -> None:
    release_of(world, user={"login": "ada", "type": "User"})
    world.sections = {}
    world.on_branch = branch_configuration(world, approval={"distinct_person": True})
    assert world.run() == 1
    assert {"key": "approval.distinct_person", "branch": "true", "tag": None} in world.evidence["gates"]["differences"]
