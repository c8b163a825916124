"""``adopt --check`` in real scratch repositories: everything that stands before a first deployment, in one list."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from azora_ci.cli.adopt import plan
from tests.cli.adopt.test_plan import SHA, application, filled_in, run  # noqa: F401 - a fixture
from tests.support.commands import git

ONES = "sha256:" + "1" * 64


def completed(folder: Path) -> None:
    """Do all that a person does after adopting: name the checks, correct the guesses, commit what services are built from."""
    filled_in(folder)
    path = folder / plan.CONFIG
    text = path.read_text().replace("azora-os.example", "azora-os.test").replace("sha256:" + "0" * 64, ONES)
    path.write_text(text)
    (folder / "package-lock.json").write_text('{"lockfileVersion": 3, "packages": {}}')
    for file in ("services/api-gateway/Dockerfile.prod", "services/auth-service/Dockerfile", "prisma/migrations/1_start/migration.sql"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")


def test_a_repository_that_lacks_nothing(application: Path) -> None:  # noqa: F811 - the fixture
    plan.adopt(application, action_ref=SHA)
    completed(application)
    assert run(str(application), "--check", "--ref", SHA)[0] == 0


def test_what_was_just_adopted_lacks_all_that_a_person_has_to_do(application: Path) -> None:  # noqa: F811 - the fixture
    plan.adopt(application, action_ref=SHA)
    (application / ".github/workflows/restore-drill.yml").unlink()
    code, output = run(str(application), "--check", "--ref", SHA)
    assert code == 1
    for said in (
        ".github/workflows/restore-drill.yml: missing: not this version's",
        "is still to be filled in: the public address",
        "services.api_gateway.context: there is no folder services/api-gateway",
        "database.migrations_dir, prisma/migrations: No migrations",
        "Lock file cannot be read",
    ):
        assert said in output
    assert output.count("next: ") >= 8


def test_tags_and_checks_that_nothing_gives_are_noted(application: Path) -> None:  # noqa: F811 - the fixture
    plan.adopt(application, action_ref=SHA)
    completed(application)
    git(application, "tag", "1.2.3")
    code, output = run(str(application), "--check", "--ref", SHA)
    assert code == 0
    assert "Tags: 1.2.3: a tag without v in front starts no deployment" in output
    assert "Required check test: no workflow here has a job of this name" in output
    (application / ".github/workflows/ci.yml").write_text("on: push\njobs: {test: {runs-on: x, steps: []}}\n")
    git(application, "add", ".github")
    git(application, "tag", "v1.2.4")
    output = run(str(application), "--check", "--ref", SHA)[1]
    assert "Tags" not in output and "Required check" not in output


@pytest.mark.parametrize(("line", "said"), [("public_url", "reserved for examples"), ("edge_image", "all zeros")])
def test_a_guess_whose_mark_was_removed_is_still_none(application: Path, line: str, said: str) -> None:  # noqa: F811 - the fixture
    plan.adopt(application, action_ref=SHA)
    before = next(text for text in (application / plan.CONFIG).read_text().splitlines() if text.startswith(line))
    completed(application)
    path = application / plan.CONFIG
    after = next(text for text in path.read_text().splitlines() if text.startswith(line))
    path.write_text(path.read_text().replace(after, before.partition("#")[0] if line == "edge_image" else before.partition(" #")[0]))
    code, output = run(str(application), "--check", "--ref", SHA)
    assert code == 1
    assert said in output
    assert f"{plan.CONFIG}:" in output


def test_the_validation_is_told_which_secrets_are_set_and_no_value(application: Path) -> None:  # noqa: F811 - the fixture
    plan.adopt(application, action_ref=SHA)
    jobs = yaml.safe_load((application / ".github/workflows/deploy-production.yml").read_text())["jobs"]
    (env,) = [step["env"] for step in jobs["pre-deployment-validation"]["steps"] if "run" in step]
    told = {name: value for name, value in env.items() if name.startswith("PRESENT_")}
    wanted = ("DATABASE_URL", "DEBUG", "REPORT_URL", "SESSION_SECRET", "SLACK_WEBHOOK")
    assert told == {f"PRESENT_{name}": f"${{{{ secrets.{name} != '' }}}}" for name in wanted}
    assert not {"SESSION_SECRET", "REPORT_URL", "DATABASE_URL"} & env.keys()
    others = [step for name, job in jobs.items() if name != "pre-deployment-validation" for step in job["steps"]]
    assert "PRESENT_" not in str(others)
