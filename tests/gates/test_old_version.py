"""Whether code can go back, where no version in production was tried: what the judgement says, and why nothing was tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from azora_ci.core import config
from azora_ci.core.config import DatabaseSettings
from azora_ci.core.errors import NotTrueError
from azora_ci.gates.migrations import Policy
from azora_ci.gates.old_version import CodeRollback, decide, require_compatible
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
