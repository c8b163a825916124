"""Whether code can go back, where no version in production was tried: what the judgement says, and why nothing was tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from azora_ci.core import config
from azora_ci.core.config import DatabaseSettings, OldVersionRequest, OldVersionSettings
from azora_ci.core.errors import NotTrueError
from azora_ci.gates.migrations import Policy
from azora_ci.gates.old_version import CodeRollback, OldVersion, decide, require_compatible, since, with_earlier
from azora_ci.targets.release import Release
from tests.support import deploy_config

FINDING = {"file": "1_a/migration.sql", "line": 2, "verdict": "incompatible", "reason": "v1 reads it"}
OFF = "the version in production was not tried: there is no [migrations.old_version]"


def judged(verdict: str, *findings: dict[str, Any]) -> dict[str, Any]:
    return {"migrations": {"not_judged": None, "judgement": {"verdict": verdict, "findings": list(findings)}}}


@pytest.fixture
def database(tmp_path: Path) -> DatabaseSettings:
    return config.load(deploy_config.write(tmp_path / "deploy.toml")).database


@pytest.mark.parametrize(("verdict", "value"), [("compatible", True), ("incompatible", False), ("unknown", None)])
def test_without_a_test_the_judgement_says_it_and_that_the_test_is_off(
    database: DatabaseSettings, verdict: str, value: bool | None
) -> None:
    found = decide(database, {"how": "full copy"}, None, judged(verdict, *([FINDING] if value is False else [])))
    assert (found.value, found.how) == (value, "classified")
    assert found.reasons[:2] == (OFF, f"the migrations are judged {verdict}")
    assert found.reasons[2:] == (("1_a/migration.sql:2: incompatible, v1 reads it",) if value is False else ())


@pytest.mark.parametrize("validation", [{}, {"migrations": {"not_judged": "no history", "judgement": None}}])
def test_what_nobody_judged_is_not_known(database: DatabaseSettings, validation: dict[str, Any]) -> None:
    found = decide(database, {"how": "full copy"}, None, validation)
    assert (found.value, found.how, found.reasons[0]) == (None, "unknown", OFF)


def test_no_version_and_no_migration(database: DatabaseSettings) -> None:
    assert decide(database, {"how": "nothing pending"}, "no version", {}).value is True
    assert decide(database, {"how": "full copy"}, "no version", {}) == CodeRollback(None, "unknown", ("no version",))


def test_only_what_was_seen_to_break_closes_the_gate() -> None:
    broken = CodeRollback(False, "tested", ("GET / of api: HTTP 500",))
    demanding, reasoned = (
        Policy(require_compatible=True, incompatible_reason=None),
        Policy(require_compatible=False, incompatible_reason="unused"),
    )
    with pytest.raises(NotTrueError, match="does not work on the migrated schema"):
        require_compatible(broken, demanding)
    assert require_compatible(broken, reasoned) == "unused"
    for other in (CodeRollback(None, "unknown", ("x",)), CodeRollback(False, "classified", ("x",)), CodeRollback(True, "tested", ("x",))):
        assert require_compatible(other, demanding) is None
        assert require_compatible(other, reasoned) is None


# --- what earlier deployments left ------------------------------------------------------------------------------------------

BROKE = {"value": False, "how": "tested", "reasons": ["GET / of api: HTTP 500"]}


def left(number: int, **changes: Any) -> dict[str, Any]:
    return {"deployment_id": f"176400000{number}-abc123", "version": f"v1.{number}.0", "migrations_applied": 2, **changes}


def test_what_a_failed_deployment_left_is_not_forgotten_by_the_next_one() -> None:
    nothing_pending = CodeRollback(True, "classified", ("no migration is pending: nothing was started",))
    earlier = since([left(1, migrations_applied=0), left(2, code_rollback_safe=BROKE), left(3)])
    assert earlier is not None and earlier.breaks
    assert earlier.reasons == (
        "the deployment of v1.2.0 (1764000002-abc123), which does not serve, may have left migrations", "GET / of api: HTTP 500",
    )  # fmt: skip
    assert with_earlier(nothing_pending, {"serving": {"schema": earlier.document()}}) == earlier
    assert with_earlier(nothing_pending, {"serving": {"schema": None}}) == with_earlier(nothing_pending, {}) == nothing_pending
    tested = CodeRollback(True, "tested", ("it works on the copy",))
    assert with_earlier(tested, {"serving": {"schema": earlier.document()}}) == tested


def test_a_deployment_that_says_nothing_leaves_it_open_and_one_that_never_migrated_leaves_nothing() -> None:
    unknown = since([left(1, migrations_applied=None)])
    assert unknown is not None and unknown.value is None
    assert since([left(1, migrations_applied=None, failure={"not_run": ["database-migrations", "gradual-rollout"]})]) is None
    assert since([]) is None


# --- what counts as an answer -----------------------------------------------------------------------------------------------

READ, WRITE = OldVersionRequest("api", "/"), OldVersionRequest("api", "/items", "POST", "{}")


def asked(read: dict[OldVersionRequest, tuple[int | None, int | None]], write: dict[OldVersionRequest, int | None]) -> CodeRollback:
    """Return what is found when requests are answered so, before and behind the migrations."""
    settings = OldVersionSettings(("api",), {}, None, tuple(read), tuple(write), 1.0)
    old = OldVersion(settings, {}, Release("1764000000-abc123", "v1.0.0", {}), (), None, None, tried=True)  # type: ignore[arg-type]
    for request, (before, after) in read.items():
        old.answers[request] = [before]
        old._compare(request, after)
    for request, status in write.items():
        old._compare(request, status)
    return old.result({})


@pytest.mark.parametrize(
    ("read", "write", "value"),
    [
        ({READ: (200, 200)}, {}, True),
        ({READ: (200, None)}, {}, False),  # a reset or a crash is no answer
        ({}, {WRITE: None}, False),
        ({}, {WRITE: 201}, True),
        ({READ: (500, 500)}, {}, None),  # it says nothing
        ({READ: (None, None)}, {}, None),
        ({}, {}, None),  # nothing was asked
    ],
)
def test_only_an_answer_as_it_should_be_says_that_it_works(read: Any, write: Any, value: bool | None) -> None:
    assert asked(read, write).value is value
