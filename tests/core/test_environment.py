"""Secrets of services come from variables of their own, or from the lines of one secret."""

from __future__ import annotations

import pytest

from azora_ci.core.environment import child_environment, named_secrets
from azora_ci.core.errors import BadInputError
from azora_ci.core.variables import Secret

LINES = Secret("""\
# of the shop
API_TOKEN=abc$def # a comment
export QUOTED="two words #1"
MULTILINE="first
second"
EMPTY=
OWN=from the lines
""")


def test_lines_are_read_as_dotenv_and_nothing_is_substituted(monkeypatch):
    monkeypatch.setenv("OWN", "from a variable")
    monkeypatch.setenv("def", "substituted")
    found = named_secrets(["API_TOKEN", "QUOTED", "MULTILINE", "OWN"], LINES)
    assert {name: secret.reveal() for name, secret in found.items()} == {
        "API_TOKEN": "abc$def",
        "QUOTED": "two words #1",
        "MULTILINE": "first\nsecond",
        "OWN": "from a variable",
    }


def test_what_neither_has_is_named_and_no_value_is(monkeypatch):
    monkeypatch.delenv("MISSING", raising=False)
    with pytest.raises(BadInputError) as caught:
        named_secrets(["MISSING", "EMPTY", "API_TOKEN"], LINES)
    assert "EMPTY, MISSING" in caught.value.message()
    assert "SERVICE_SECRETS" in caught.value.message()
    assert "abc" not in caught.value.message()
    with pytest.raises(BadInputError, match="MISSING"):
        named_secrets(["MISSING"])


def test_no_child_inherits_the_lines(monkeypatch):
    monkeypatch.setenv("SERVICE_SECRETS", LINES.reveal())
    assert "SERVICE_SECRETS" not in child_environment()
