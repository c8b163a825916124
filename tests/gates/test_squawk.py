"""squawk runs beside the judgement: its remarks have lines that begin at 1, and without an answer there are none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from azora_ci.cli.common import own_processes
from azora_ci.database.migrations.judgement.model import Facts
from azora_ci.gates import squawk
from azora_ci.gates.migrations import examine

SQL = "ALTER TABLE t ADD COLUMN a int;\n\nALTER TABLE t\n  ADD COLUMN b char(3);\nDROP TABLE t;\n"


def test_a_remark_stands_at_its_statement_and_ours_wins(tmp_path: Path):
    file = tmp_path / "a.sql"
    file.write_text(SQL)
    judgement = examine([(str(file), SQL)], Facts(), lambda names: squawk.remarks(names, own_processes()))
    assert judgement.squawk
    assert [(finding.line, finding.kind, finding.rules) for finding in judgement.findings] == [
        (3, "remark", ("ban-char-field",)),
        (5, "data", ("ban-drop-table",)),
    ]
    assert "the running version may use it" in judgement.findings[1].reason


def test_what_the_release_itself_made_deserves_no_remark(tmp_path: Path):
    file = tmp_path / "a.sql"
    file.write_text("CREATE TABLE n (id int);\nALTER TABLE n ADD FOREIGN KEY (id) REFERENCES t (id) ON DELETE CASCADE;\n")
    said = squawk.remarks([str(file)], own_processes())
    assert said
    assert examine([(str(file), file.read_text())], Facts(), lambda _: said).findings == ()


@pytest.mark.parametrize("script", [None, "echo no JSON", 'echo "[{}]"', "exec nothing-of-that-name"])
def test_without_an_answer_the_judgement_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None):
    if script is not None:
        (tmp_path / "squawk").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "squawk").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    judgement = examine([("a.sql", SQL)], Facts(), lambda names: squawk.remarks(names, own_processes()))
    assert (judgement.squawk, judgement.verdict, len(judgement.findings)) == (False, "incompatible", 1)
