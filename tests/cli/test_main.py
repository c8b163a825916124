"""These tests run the commands that a person types, on a real edge and real instances."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from azora_ci.cli.main import main
from azora_ci.core.config.calendar import DAYS
from azora_ci.core.process import send_signal
from azora_ci.rehearsal.standins.github import GitHubApi
from azora_ci.targets.base import Owner
from azora_ci.targets.lock import Lock
from tests.support import deploy_config
from tests.support.edge_world import NEW, OLD, ROOT, Load, World, free_ports, get
from tests.support.waiting import until

THIRD = "1764000200-cccccc"
COMMANDS = (
    ["rollback"],
    ["lock", "status"],
    ["lock", "release"],
    ["clean"],
    ["edge", "status"],
    ["edge", "log"],
    ["edge", "install"],
    ["doctor"],
    ["history"],
    ["verify"],
    ["audit"],
    ["site"],
    ["adopt"],
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Deploy 1.0.0, 1.1.0 and 1.2.0 one after the other, within a rollback window."""
    world = World(tmp_path_factory.mktemp("world"), instances=1)
    try:
        world.deploy_old()
        for version, deployment_id in (("1.1.0", NEW), ("1.2.0", THIRD)):
            target, release = world.target(), world.release(version, deployment_id)
            with target.locked(Owner(deployment_id, "https://runs.example/2", "tests")):
                target.deploy(release, 100)
                target.set_weight(release, 100)
                target.promote(release)
        yield world
    finally:
        world.close()


@pytest.fixture
def checkout(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a checkout that has what the configuration names."""
    (world.folder / "prisma/migrations/1_start").mkdir(parents=True, exist_ok=True)
    (world.folder / "prisma/migrations/1_start/migration.sql").touch()
    (world.folder / "package-lock.json").write_text('{"lockfileVersion": 3, "packages": {}}')
    monkeypatch.chdir(world.folder)


def run(*arguments: str | Path, config: Path | None = None) -> tuple[int, str]:
    argv = [*map(str, arguments), *(["--config", str(config)] if config else [])]
    result = CliRunner().invoke(main, argv)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command):
    completed = subprocess.run(
        [sys.executable, "-m", "azora_ci", *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert command in (["adopt"], ["verify"]) or "--config" in completed.stdout
    assert len(completed.stdout.splitlines()) > 5


def test_rollback_is_the_step_with_its_options_and_exit_codes(tmp_path):
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [
        sys.executable,
        "-m",
        "azora_ci",
        "rollback",
        "--reason",
        "a test",
        "--after-deadline",
        "--config",
        str(tmp_path / "none.toml"),
    ]
    environ |= {"PYTHONPATH": str(ROOT), "PROD_DATABASE_URL": "postgresql://u:p@127.0.0.1:1/d"}
    completed = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (completed.returncode, "none.toml does not exist" in completed.stdout) == (2, True), completed.stdout + completed.stderr
    fragment = json.loads((tmp_path / "deployment-logs/record/rollback.json").read_text())
    assert (fragment["status"], fragment["evidence"]["reason"]) == ("failed", "a test")


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ([], ("No reason is given", "Next: python -m azora_ci rollback --reason")),
        (["--reason", "  "], ("No reason is given",)),
        (["--reason", "a test"], ("PROD_DATABASE_URL is not set",)),
        (["--reason", "a test", "--deployment-id", "v1.2.3"], ("'v1.2.3' is not <unix seconds>", "for example 1764000000-abc123")),
        (["--reason", "a test", "--deployment", "x"], ("No such option",)),
    ],
    ids=["no reason", "an empty reason", "no secrets", "a version for an id", "a mistyped option"],
)
def test_a_tired_person_is_told_what_is_missing_and_nothing_begins(tmp_path, options, messages):
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {"PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "azora_ci", "rollback", *options]
    completed = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert completed.returncode == 2, completed.stdout + completed.stderr
    for words in messages:
        assert words in completed.stdout + completed.stderr
    assert "Traceback" not in completed.stderr


def test_the_help_of_a_rollback_fits_a_screen_and_names_the_secrets():
    code, output = run("rollback", "--help")
    assert (code, len(output.splitlines()) <= 45) == (0, True), output
    for words in ("--reason", "--deployment-id", "--after-deadline", "PROD_DATABASE_URL", "PROD_KEY", "AWS_ACCESS_KEY_ID", "Exit codes"):
        assert words in output


def test_no_command_is_described_by_half_a_sentence():
    _, output = run("--help")
    assert "..." not in output.partition("Commands:")[2]


# --- lock -------------------------------------------------------------------------------------------------------------------


def test_a_living_owner_keeps_the_lock_unless_somebody_insists(world):
    assert run("lock", "status", config=world.config_path) == (0, "The lock is free.\n")
    target = world.target()
    with target.locked(Owner(NEW, "https://runs.example/7", "octocat")):
        code, output = run("lock", "status", config=world.config_path)
        assert (code, "https://runs.example/7" in output, "a deployment, started by octocat" in output) == (0, True, True)
        assert re.search(r"its owner +runs$", output, re.MULTILINE)
        code, output = run("lock", "release", "--reason", "I think it hangs", config=world.config_path)
        assert (code, "owner is alive" in output, "--force" in output) == (1, True, True)
        code, output = run("lock", "release", "--reason", "I know it hangs", "--force", config=world.config_path)
        assert (code, "Released: I know it hangs" in output) == (0, True)
    assert "I know it hangs" in (world.folder / "state/lock.log.jsonl").read_text()
    assert run("lock", "release", "--reason", "again", config=world.config_path) == (0, "The lock is free.\n")
    assert run("lock", "release", config=world.config_path)[0] == 2


def test_the_lock_of_a_dead_owner_is_released(world):
    path = world.folder / "state/lock.json"
    Lock(path, world.clock).acquire(Owner(NEW, "https://runs.example/8", "octocat"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": 2**22 - 1}))
    assert "does not run any more" in run("lock", "status", config=world.config_path)[1]
    code, output = run("doctor", config=world.config_path)
    assert (code, f"✗ lock: left behind by {NEW} of octocat" in output) == (1, True)
    assert run("lock", "release", "--reason", "its runner is gone", config=world.config_path)[0] == 0
    assert world.target().holder() is None


# --- edge and doctor --------------------------------------------------------------------------------------------------------


def test_the_edges_weights_versions_and_counters(world):
    for _ in range(3):
        assert get(world.port, "/api/work")[0] == 200
    code, output = run("edge", "status", config=world.config_path)
    assert code == 0, output
    lines = output.splitlines()
    assert lines[0].split() == ["route", "service", "version", "deployment", "role", "weight", "requests", "failed", "p95"]
    (api,) = [line for line in lines if line.startswith("/api ")]
    assert re.match(rf"/api +api_gateway +v1\.2\.0 +{THIRD} +stable +100 % +[1-9]\d* +0 \(0\.0%\) ", api), api
    assert f"v1.1.0 ({NEW}, rollback target): 2 instances" in output


def test_what_went_wrong_at_the_edge(world):
    world.flag("1.2.0.error")
    try:
        assert get(world.port, "/api/orders?token=geheim")[0] == 500
    finally:
        world.unflag("1.2.0.error")
    until(lambda: "/api/orders" in run("edge", "log", config=world.config_path)[1], "the request is logged")
    code, output = run("edge", "log", "--since", "10m", "--version", "v1.2.0", config=world.config_path)
    assert code == 0, output
    assert "1 requests went wrong" in output
    assert re.search(
        r"^\S+Z +v1\.2\.0 +api_gateway#\d +GET /api/orders +500 +\d+ +1 +user +the service answered so$", output, re.MULTILINE
    ), output
    (line,) = run("edge", "log", "--json", "--release", THIRD, config=world.config_path)[1].splitlines()
    assert (json.loads(line)["version"], json.loads(line)["path"]) == ("v1.2.0", "/api/orders")
    assert "Nothing went wrong" in run("edge", "log", "--version", "v1.1.0", config=world.config_path)[1]
    assert "Nothing went wrong" in run("edge", "log", "--host", "10.0.0.1", config=world.config_path)[1]
    assert run("edge", "log", "--since", "yesterday", config=world.config_path)[0] == 2


@pytest.mark.usefixtures("checkout")
def test_a_healthy_production_and_one_that_lacks_everything(world, tmp_path):
    code, output = run("doctor", config=world.config_path)
    assert code == 0, output
    assert "every instance runs" in output
    assert "✓ repository: nothing is missing" in output
    assert re.search(r"✓ api gateway before the rollout: HTTP 200, healthy, version 1\.[12]\.0", output), output
    assert "✓ signatures: none: whoever can write the bucket can forge manifests, records and recorded host keys" in output
    assert re.search(r"✓ build isolation: \d images are built without secrets .+ 500 MB of artifacts", output)
    (port,) = free_ports(1)
    service = deploy_config.service("API", f"http://127.0.0.1:{port}/health", command=["true"])
    edge = {"config_dir": str(tmp_path / "edge")}
    (tmp_path / "file").touch()
    places = {"kind": "local_processes", "local_processes": {"state_dir": str(tmp_path / "file/state"), "archive_dir": str(tmp_path)}}
    path = deploy_config.write(tmp_path / "deploy.toml", services={"api": service}, edge=edge, target=places)
    code, output = run("doctor", config=path)
    assert code == 1
    for name in ("smoke.endpoints", "state dir", "config dir", "admin socket", "API before the rollout", rf"{re.escape(str(path))}:\d+"):
        assert re.search(rf"^✗ {name}: .+\n    next: \S.+$", output, re.MULTILINE), output
    assert run("doctor", config=tmp_path / "absent.toml")[0] == 2
    path.write_text(path.read_text().replace("application", "aplication"))
    code, output = run("doctor", config=path)
    assert (code, "aplication" in output, "azora.example is reserved" in output) == (1, True, True)


def test_a_key_that_is_no_use_hides_nothing_else(world, monkeypatch):
    monkeypatch.setenv("PROD_KEY", "not a key")
    code, output = run("doctor", config=world.config_path)
    assert code == 1
    assert "is not a private key" in output
    assert "✗ database.migrations_dir" in output


def test_an_edge_is_installed_and_one_that_is_there_keeps_its_weights(world, tmp_path):
    code, output = run("edge", "install", config=world.config_path)
    assert code == 0, output
    assert f"✓ {world.folder / 'edge/bootstrap.json'} is written" in output
    assert world.edge.state().stable == THIRD
    service = deploy_config.service("API", "http://127.0.0.1:8080/health", command=["true"])
    edge = {"config_dir": str(tmp_path / "edge")}
    path = deploy_config.write(tmp_path / "deploy.toml", services={"api": service}, edge=edge)
    code, output = run("edge", "install", "--listen", "127.0.0.1:8081", config=path)
    assert (code, "envoy -c " in output) == (0, True)
    assert json.loads((tmp_path / "edge/current/edge.json").read_text())["listen"] == "127.0.0.1:8081"
    code, output = run("edge", "status", config=path)
    assert (code, "admin socket" in output) == (3, True)  # the edge is installed but does not run


# --- clean: changes what the others look at, so it is last --------------------------------------------------------------------


def test_only_what_nobody_goes_back_to_any_more_is_removed(world):
    code, output = run("clean", config=world.config_path)  # the windows are open
    assert (code, "Nothing is to be removed." in output) == (0, True)
    code, output = run("clean", "--dry-run", "--window-minutes", "0", config=world.config_path)
    assert (code, f"would remove v1.0.0 ({OLD}): 2 instances" in output) == (0, True)
    assert world.running() == {"v1.0.0": 2, "v1.1.0": 2, "v1.2.0": 2}
    with Load(world.port) as load:
        code, output = run("clean", "--window-minutes", "0", config=world.config_path)
        assert (code, f"✓ removed v1.0.0 ({OLD}): 2 instances" in output) == (0, True), output
        assert world.versions_now(5) == {"1.2.0"}
    assert load.failed == []
    assert f"v1.1.0 ({NEW}) is the rollback target: 2 instances" in output
    assert world.running() == {"v1.1.0": 2, "v1.2.0": 2}
    assert "Nothing is to be removed." in run("clean", "--window-minutes", "0", config=world.config_path)[1]


def test_a_dead_instance_is_named(world):
    facts = next(iter(world.target().current().releases[THIRD].instances.values()))
    send_signal(facts["pid"], signal.SIGKILL)
    until(lambda: world.running()["v1.2.0"] == 1, "an instance is dead")
    assert re.search(r"✗ \w+#1 v1\.2\.0 \(127\.0\.0\.1:\d+\) does not run", run("edge", "status", config=world.config_path)[1])
    code, output = run("doctor", config=world.config_path)
    assert (code, "✗ instances: v1.2.0" in output) == (1, True)


@pytest.mark.parametrize(("rules", "said"), [([], "✗ approval: enforced: false"), (None, "✗ approval: enforced: unknown")])
def test_the_doctor_says_whether_an_approval_is_enforced(world, tmp_path, monkeypatch, rules, said):
    with GitHubApi(tmp_path / "github.json", "the-token") as api:
        api.write(environments={} if rules is None else {"production-approval": {"protection_rules": rules}})
        for name, value in {"GITHUB_REPOSITORY": "azora/azora", "GITHUB_TOKEN": "the-token", "GITHUB_API_URL": api.url}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PROD_DATABASE_URL", "postgresql://u:p@db.example/azora")
        code, output = run("doctor", config=world.config_path)
    assert code == 1
    assert said in output
    assert "✗ production database: " in output
    assert "u:p@" not in output


@pytest.mark.usefixtures("checkout")
def test_the_doctor_names_a_freeze_and_its_end_and_complains_of_one_without_end(world, tmp_path):
    today = datetime.now(UTC).date()
    tomorrow, text = today + timedelta(days=1), world.config_path.read_text()
    for frozen, said in (
        (
            {"from": str(today - timedelta(days=1)), "to": str(tomorrow), "why": "the fair"},
            "✓ calendar: closed now: it is frozen, .+the fair.+ open from ",
        ),
        ({"from": "2020-01-01", "to": "2020-01-02"}, "✓ calendar: a deployment may begin now"),
        ({"days": list(DAYS)}, "✗ calendar: .+ does not open within 366 days\n    next: correct the windows"),
    ):
        path = tmp_path / "frozen.toml"
        entry = ", ".join(f"{key} = {json.dumps(value)}" for key, value in frozen.items())
        path.write_text(f'calendar = {{ timezone = "UTC", frozen = [{{ {entry} }}] }}\n{text}')
        _, output = run("doctor", config=path)
        assert re.search(said, output), output


def test_the_doctor_says_when_it_could_not_ask_about_approvals(world):
    assert "approval: unknown: GITHUB_REPOSITORY and GITHUB_TOKEN are not set" in run("doctor", config=world.config_path)[1]
