"""Environment -> settings: everything wrong is reported at once, and secrets stay hidden."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest

from azora_ci.core import environment, pipeline, settings, variables
from azora_ci.core.errors import BadInputError
from azora_ci.steps import runner

GOOD = {"DEPLOYMENT_ID": "1764000000-abc123", "VERSION": "v1.2.3", "GIT_SHA": "a" * 40}


@dataclass(frozen=True, kw_only=True)
class Sample(settings.Deployment, settings.DatabaseAccess, settings.Health):
    token: variables.Secret | None = variables.variable("SAMPLE_TOKEN", "a token", example="x", required=False, secret=True)


def test_reads_types_and_defaults():
    loaded = variables.load(Sample, {**GOOD, "PROD_DATABASE_URL": "postgresql://u:p@h/d", "HEALTH_CHECK_INTERVAL": "0.5"})
    assert loaded.log_dir == Path("deployment-logs")
    assert (loaded.health_interval, loaded.health_retries, loaded.rollback_window_minutes) == (0.5, 5, 60)
    assert loaded.database_url.reveal() == "postgresql://u:p@h/d"
    assert loaded.token is None
    assert loaded.run_attempt == 1


def test_a_relative_folder_of_artifacts_lies_outside_of_the_workspace_where_a_runner_has_a_place_for_it():
    on_a_runner = variables.load(settings.Common, {"RUNNER_TEMP": "/r/_temp", "RECEIVED_ARTIFACTS_DIR": "/elsewhere/received"})
    assert (on_a_runner.log_dir, on_a_runner.received_dir) == (Path("/r/_temp/deployment-logs"), Path("/elsewhere/received"))
    at_a_keyboard = variables.load(settings.Common, {})
    assert (at_a_keyboard.log_dir, at_a_keyboard.received_dir) == (Path("deployment-logs"), Path("received-artifacts"))


def test_every_bad_variable_is_reported_at_once_with_purpose_and_example():
    with pytest.raises(BadInputError) as caught:
        variables.load(Sample, {"VERSION": "1.2.3", "HEALTH_CHECK_RETRIES": "many", "GITHUB_ACTIONS": "perhaps", "DEPLOYMENT_ID": ""})
    text = caught.value.message()
    for name in ("VERSION", "HEALTH_CHECK_RETRIES", "GITHUB_ACTIONS", "DEPLOYMENT_ID", "GIT_SHA", "PROD_DATABASE_URL"):
        assert name in text
    assert "lacks the leading v" in text
    assert "postgresql://user:password@host:5432/azora" in text
    assert caught.value.exit_code == 2


def test_an_empty_variable_counts_as_unset():
    loaded = variables.load(settings.Common, {"ROLLBACK_WINDOW_MINUTES": "", "GITHUB_REPOSITORY": ""})
    assert loaded.rollback_window_minutes == 60
    assert loaded.repository is None


@pytest.mark.parametrize("bad", ["../x", "1764000000-abc123\n", "1" * 1100, "1764000000-ABC123", "0-abc123", "1764000000-abc123/.."])
def test_a_deployment_id_that_would_escape_is_refused(bad):
    with pytest.raises(ValueError, match="unix seconds"):
        variables.deployment_id(bad)


def test_a_malformed_secret_is_named_but_not_shown():
    @dataclass(frozen=True, kw_only=True)
    class Fussy:
        secret: variables.Secret = variables.variable("FUSSY", "digits", example="1", parse=variables.whole_number(), secret=True)

    with pytest.raises(BadInputError) as caught:
        variables.load(Fussy, {"FUSSY": "hunter2"})
    assert "FUSSY" in caught.value.what
    assert "hunter2" not in caught.value.message()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PROD_HOST", "web1.example web2.example"),
        ("PROD_HOST", "-oProxyCommand=id"),
        ("PROD_JUMP_HOST", "ops@a.example,b.example"),
        ("PROD_USER", "deploy\n  ProxyCommand id"),
        ("PROD_KEY", "ssh-ed25519 AAAA the public one"),
    ],
)
def test_access_to_production_that_ssh_could_misread_is_refused_and_not_shown(name, value):
    with pytest.raises(BadInputError) as caught:
        variables.load(settings.ProductionHosts, {name: value})
    assert f"{name}: its value (not shown)" in caught.value.what
    assert value not in caught.value.message()


def test_a_pasted_private_key_is_normalised():
    text = "-----BEGIN OPENSSH PRIVATE KEY-----\r\nabc\r\n-----END OPENSSH PRIVATE KEY-----"
    loaded = variables.load(settings.ProductionHosts, {"PROD_KEY": text})
    assert loaded.prod_key.reveal() == text.replace("\r", "") + "\n"


def test_a_secret_is_redacted_wherever_it_is_shown():
    secret = variables.Secret("hunter2")
    for text in (repr(secret), str(secret), f"{secret}", f"{secret:>10}", repr([secret]), repr({"k": secret})):
        assert "hunter2" not in text
    assert secret == variables.Secret("hunter2")
    assert secret != "hunter2"
    assert secret.reveal() == "hunter2"
    with pytest.raises(TypeError):
        pickle.dumps(secret)


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (variables.whole_number(1, 10), "7", ["0", "11", "1.5", "x", " 3", "٣", "1e3"]),
        (variables.number(0, 5), "0.25", ["-1", "6", "nan", "inf", "1,5", "1e3"]),
        (variables.truth, "True", ["yes", "1", ""]),
        (variables.one_of("full", "none"), "full", ["Full", "f"]),
        (variables.git_sha, "0" * 40, ["0" * 39, "A" * 40, "0" * 40 + "\n"]),
    ],
)
def test_parsers(parse, good, bad):
    parse(good)
    for text in bad:
        with pytest.raises(ValueError):
            parse(text)


def test_children_inherit_no_secret_and_cannot_write_our_outputs(monkeypatch):
    for name in ("PROD_DATABASE_URL", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_OUTPUT", "GITHUB_ENV", "PROD_KEY"):
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("LANG", "C.UTF-8")
    child = environment.child_environment({"DATABASE_URL": "given"})
    assert "hidden" not in child.values()
    assert child["LANG"] == "C.UTF-8"
    assert child["DATABASE_URL"] == "given"


def test_every_declared_secret_is_withheld_from_children():
    setting_groups = [runner.step_module(job).Settings for job in pipeline.JOBS | pipeline.TOOLS]
    declared = {field.name for group in setting_groups for _, field in variables.declared_variables(group) if field.secret}
    assert {"PROD_KEY", "DOCKER_PASSWORD", "GITHUB_TOKEN", "BACKUP_VERIFY_DATABASE_URL"} <= declared
    assert declared <= environment.WITHHELD
