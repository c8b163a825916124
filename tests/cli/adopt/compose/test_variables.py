"""What Compose makes of variables, and of files of variables; what these mean alike for their library is compared with it."""

from __future__ import annotations

import io

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.cli.adopt.compose.variables import interpolate, read_lines

VARIABLES = {"A": "1", "EMPTY": "", "B": "two"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", ""),
        ("plain", "plain"),
        ("$A", "1"),
        ("${A}x${B}", "1xtwo"),
        ("$$A and $${A:-x}", "$A and ${A:-x}"),
        ("${NO:-d}", "d"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${NO-d}", "d"),
        ("${A:+alt}${EMPTY:+alt}${EMPTY+alt}${NO+alt}", "altalt"),
        ("${A:?needed}${A?needed}", "11"),
        ("${NO:-${B}}", "two"),
        ("${NO:-${ALSO:-${A}}}/web", "1/web"),
        ("${NO:-http://x:${A}/}", "http://x:1/"),
        ("${NO:-a}b}", "ab}"),
        ("costs $5 and ${", "costs $5 and ${"),
        ("${A B}", "${A B}"),
        ("${A", "${A"),
    ],
)
def test_every_form_is_replaced(text, result):
    assert interpolate(text, VARIABLES).text == result
    assert not interpolate(text, VARIABLES).missing


@pytest.mark.parametrize("text", ["$NO", "${NO}", "${NO:?say it}", "${NO?say it}", "${NONE:-${NO}}", "a${NO}b", "${EMPTY:?say it}"])
def test_what_nobody_gives_a_value_is_missing(text):
    assert interpolate(text, VARIABLES).missing == (("EMPTY",) if "EMPTY" in text else ("NO",))


@pytest.mark.parametrize(
    ("text", "only"), [("${X}", "X"), ("$X", "X"), ("${X:-y}", "X"), ("${X:?e}", "X"), ("a$X", None), ("$X$A", None), ("a", None)]
)
def test_a_text_that_is_one_variable_says_which(text, only):
    assert interpolate(text, VARIABLES).only == only


@given(st.text(alphabet="$${}:-+?AB a", max_size=60))
def test_no_text_is_beyond_it(text):
    assert isinstance(interpolate(text, VARIABLES).text, str)


@given(st.text(alphabet=st.characters(exclude_characters="$"), max_size=60))
def test_a_text_without_variables_stays(text):
    assert interpolate(text, VARIABLES).text == text
    assert interpolate(text.replace("x", "$$"), {}).text == text.replace("x", "$")


# --- files -----------------------------------------------------------------------------------------

ALIKE = """\
# a comment
PLAIN=value
export EXPORTED=1
SPACED = around
EMPTY=
NAMED
SINGLE='a $X #b'
DOUBLE="two\\nlines"
COMMENTED=value # gone
HASH=a#b
QUOTED="x" # gone
LINES="first
second"
URL=postgres://u:p@h/db?x=1&y=2
"""


def parsed(content, variables=None):
    return {name: value.text if value else None for name, value in read_lines(content, variables or {})}


def test_it_reads_what_the_library_reads():
    assert parsed(ALIKE) == dotenv_values(stream=io.StringIO(ALIKE), interpolate=False)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("\ufeffA=1", "1"),
        ("A=1\r\n", "1"),
        ('A="say \\"x\\""', 'say "x"'),
        ('A="\\$B"', "$B"),
        ("A=${B:-c}/d", "c/d"),
        ("B=1\nA=$B", "1"),
        ("A='${B}'", "${B}"),
        ("A=$GIVEN", "by .env"),
        ("A=#x", "#x"),
        ("A=x\nA=y", "y"),
    ],
)
def test_a_value_is_read_as_compose_reads_it(line, value):
    assert parsed(line, {"GIVEN": "by .env"})["A"] == value


def test_what_is_no_variable_is_left_out():
    assert parsed("=x\n1A=x\n\x00\n[section]\nA-B.C=1") == {"A-B.C": "1"}
