"""What of a server's message may leave the copy: names that the schema knows, and no value, however it is quoted."""

from __future__ import annotations

import pytest

from azora_ci.database.migrations.trial.server_log import without_values

KNOWN = 'items title note "public" : name'


@pytest.mark.parametrize(
    ("sqlstate", "message", "shown"),
    [
        ("42P01", 'relation "items" does not exist', 'relation "items" does not exist'),
        ("42703", 'column "title" of relation "items" does not exist', 'column "title" of relation "items" does not exist'),
        ("23505", 'duplicate key value violates unique constraint "secret_key"', 'duplicate key value violates unique constraint "…"'),
        ("42601", 'syntax error at or near "Bob"', 'syntax error at or near "…"'),
        (
            "42601",
            """unterminated quoted string at or near "'{"name": "Bob", "iban": "DE12"}\"""",
            'unterminated quoted string at or near "…"',
        ),
        ("42601", """unterminated quoted string at or near "'Bob's note""", 'unterminated quoted string at or near "…"'),
        ("42703", 'column "title" of "Bob" and "items"', 'column "title" of "…"'),
        ("22P02", """invalid input syntax for type integer: "a "title" of Bob\"""", 'invalid input syntax for type integer: "…"'),
        ("40001", "could not serialize access", "could not serialize access"),
    ],
)
def test_nothing_quoted_is_shown_but_known_names(sqlstate: str, message: str, shown: str) -> None:
    assert " ".join(without_values(sqlstate, message, "", KNOWN).split()) == shown
