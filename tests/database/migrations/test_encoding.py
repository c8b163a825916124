"""The encoding of a migration's file is judged by its bytes alone, in the words that tell a person what to save anew."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.database.migrations.encoding import problem

SQL = 'ALTER TABLE "courses" ADD COLUMN "größe" INTEGER; -- 学校\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (SQL.encode("utf-16"), "it is UTF-16"),
        (codecs.BOM_UTF16_BE + SQL.encode("utf-16-be"), "it is UTF-16"),
        (SQL.encode("utf-16-le"), "it is UTF-16 without a byte order mark"),
        (SQL.encode("utf-16-be"), "it is UTF-16 without a byte order mark"),
        (SQL.encode("utf-32"), "it is UTF-32"),
        (b"SELECT 1;\n-- caf\xe9\n", "byte 16 (line 2) is 0xE9, which is no UTF-8"),
        (b"SELECT 1;\n-- \x97 dash", "byte 13 (line 2) is 0x97"),
        (b"SELECT 1;\n\0", "byte 10 (line 2) is NUL"),
    ],
)
def test_what_is_no_utf_8_is_named(content: bytes, said: str) -> None:
    assert (problem(content) or "").startswith(said)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))), st.sampled_from(["utf-8", "utf-8-sig"]))
def test_all_utf_8_is_taken(text: str, encoding: str) -> None:
    assert problem(text.encode(encoding)) is None
