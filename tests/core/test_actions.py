"""What GitHub's runner reads: outputs cannot be injected, commands are escaped, foreign output cannot issue commands."""

from __future__ import annotations

import io
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.core.actions import SUMMARY_LIMIT_BYTES, Actions, escape_data, escape_property, harmless
from azora_ci.core.errors import BadInputError


def parse_outputs(text: str) -> dict[str, str]:
    """Read an output file as the runner does (actions/runner FileCommandManager)."""
    outputs: dict[str, str] = {}
    lines = text.split("\n")
    while lines and lines != [""]:
        name, delimiter = lines.pop(0).split("<<", 1)
        value: list[str] = []
        while (line := lines.pop(0)) != delimiter:
            value.append(line)
        outputs[name] = "\n".join(value)
    return outputs


def runner_obeys(text: str) -> list[str]:
    """Return the commands that a runner would obey in a log, honouring stop-commands."""
    obeyed, token = [], None
    for line in text.splitlines():
        if token is not None:
            token = None if line.strip() == f"::{token}::" else token
        elif match := re.match(r"\s*::stop-commands::(.+)", line):
            token = match[1]
        elif re.match(r"\s*::[a-z-]+.*::", line) or "##[" in line:
            obeyed.append(line)
    return obeyed


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z-]{0,10}[a-z]", fullmatch=True), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"))
    )
)
def test_outputs_survive_any_value(tmp_path_factory, values):
    file = tmp_path_factory.mktemp("out") / "output"
    actions = Actions(output_file=file, github=True, stream=io.StringIO())
    for name, value in values.items():
        actions.output(name, value)
    assert parse_outputs(file.read_text(encoding="utf-8") if file.exists() else "") == values


def test_a_newline_cannot_inject_a_second_output(tmp_path):
    file = tmp_path / "output"
    Actions(output_file=file, stream=io.StringIO()).output("version", "v1\nrollout-status=completed")
    assert parse_outputs(file.read_text()) == {"version": "v1\nrollout-status=completed"}


def test_a_bad_output_name_is_refused(tmp_path):
    with pytest.raises(BadInputError):
        Actions(output_file=tmp_path / "o", stream=io.StringIO()).output("a=b\n", "x")


def test_outside_github_outputs_are_printed():
    stream = io.StringIO()
    Actions(stream=stream).output("deployment-id", "1-abc123")
    assert stream.getvalue() == "deployment-id=1-abc123\n"


def test_escaping():
    assert escape_data("50 %\r\nnext: a,b") == "50 %25%0D%0Anext: a,b"
    assert escape_property("a: b, 5 %\n") == "a%3A b%2C 5 %25%0A"


def test_an_annotation_is_one_line():
    stream = io.StringIO()
    Actions(github=True, stream=stream).error("Gate: closed, sorry", "line one\nline two 5 %")
    assert stream.getvalue() == "::error title=Gate%3A closed%2C sorry::line one%0Aline two 5 %25\n"


def test_a_long_annotation_is_cut_at_what_github_keeps():
    stream = io.StringIO()
    Actions(github=True, stream=stream).warning("t", "x" * 10_000)
    assert stream.getvalue().count("x") == 4096


def test_the_summary_stays_under_the_limit_and_says_that_it_was_cut(tmp_path):
    file = tmp_path / "summary"
    actions = Actions(summary_file=file, stream=io.StringIO())
    actions.summary("first")
    for _ in range(5):
        actions.summary("é" * 200_000)
    assert file.stat().st_size <= SUMMARY_LIMIT_BYTES
    text = file.read_text(encoding="utf-8")
    assert text.startswith("first\n")
    assert "Cut here" in text


def test_secrets_are_masked_line_by_line():
    stream = io.StringIO()
    Actions(github=True, stream=stream).mask("one%\n\ntwo")
    assert stream.getvalue() == "::add-mask::one%25\n::add-mask::two\n"


def test_foreign_output_cannot_issue_commands_and_ours_still_can():
    stream = io.StringIO()
    actions = Actions(github=True, stream=stream)
    with actions.foreign_output():
        actions.print("::set-output name=x::y")
        actions.print("ok ##[error]fake")
        with actions.foreign_output():
            actions.print("::add-mask::a")
        actions.error("Real", "ours")
        actions.print("::warning::fake")
    actions.notice("After", "ours")
    assert runner_obeys(stream.getvalue()) == ["::error title=Real::ours", "::notice title=After::ours"]


@pytest.mark.parametrize(
    "quoted", ["1.2.3\n::error::fake", "x\r  ::add-mask::a", "\n\u2003::stop-commands::token", "fine ##[group]fake", "::warning::fake"]
)
def test_what_we_quote_cannot_issue_commands(quoted):
    stream = io.StringIO()
    Actions(github=True, stream=stream).say(quoted)
    assert runner_obeys(stream.getvalue()) == []
    plain = io.StringIO()
    Actions(stream=plain).say(quoted)
    assert plain.getvalue() == quoted + "\n"


@given(st.text(st.sampled_from(":#[]ab \n\r"), max_size=40))
def test_no_text_becomes_a_command(text):
    assert runner_obeys(harmless(text)) == []


def test_foreign_output_from_two_threads():
    stream = io.StringIO()
    actions = Actions(github=True, stream=stream)
    barrier = threading.Barrier(2)

    def shout() -> None:
        barrier.wait()
        for _ in range(50):
            with actions.foreign_output():
                actions.print("::error::fake")

    threads = [threading.Thread(target=shout) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runner_obeys(stream.getvalue()) == []
    assert stream.getvalue().count("::error::fake") == 100


def test_groups():
    stream = io.StringIO()
    with Actions(github=True, stream=stream).group("a\nb"):
        pass
    assert stream.getvalue() == "::group::a%0Ab\n::endgroup::\n"
