"""Every statement of the table is run on a real PostgreSQL: predicted locks and rewrites are those that it takes and does."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.database.cluster import Cluster
from azora_ci.database.migrations.judgement.judge import judge
from azora_ci.database.migrations.judgement.model import worst
from azora_ci.database.migrations.production import read_facts
from azora_ci.database.postgres import DatabaseUrl
from tests.conftest import DatabaseMaker
from tests.database.migrations.judgement import told, traced
from tests.support.databases import create_database


def test_the_table_is_long():
    assert len(traced.cases()) >= 200


def test_what_is_said_of_each_statement_is_as_it_was_read():
    """A change of words is meant: read told.txt after ``python -m tests.database.migrations.judgement.told`` wrote it again."""
    assert list(told.lines()) == told.FILE.read_text(encoding="utf-8").splitlines()


def test_the_table_is_true_without_a_server_too():
    for case in traced.cases():
        statements = judge([("table", case.sql)], told.FACTS)
        locks, rewrites = traced.predicted(statements)
        locks = {name: lock for name, lock in locks.items() if told.FACTS.relations[name].kind != "S"}
        expected = {name: lock for name, lock in locks.items() if name in case.locks} if case.alone else locks
        assert (worst(statements), expected, rewrites) == (case.verdict, case.locks, case.rewrites), case.sql


@pytest.mark.parametrize("line", traced.RELEASES)
def test_what_earlier_statements_of_a_release_do_is_taken_into_account(line: str):
    verdict, sql = line.split(" | ", 1)
    assert worst(judge([("release", sql)], told.FACTS)) == verdict


def test_nothing_at_all_is_compatible():
    assert worst([]) == "compatible"


def test_prediction_and_trace_agree(postgres_cluster: DatabaseMaker):
    url = postgres_cluster.fresh(traced.PRODUCTION.replace("CREATE ROLE reader;", "CREATE ROLE reader_of_statements;"))
    compare(url, postgres_cluster.cluster.major, role="reader_of_statements")


@pytest.mark.faults
@pytest.mark.parametrize("major", [15, 16, 17, 18])
def test_prediction_and_trace_agree_in_every_version(major: int, tmp_path: Path):
    processes = Processes(JobLog(Actions(stream=io.StringIO()), Clock()))
    try:
        cluster = Cluster.start(tmp_path / "cluster", processes=processes, major=major)
    except BadInputError as error:
        pytest.skip(f"PostgreSQL {major} is not installed here: {error.what}")
    with cluster:
        url = create_database(cluster, "traced")
        DatabaseMaker(cluster).execute(url, traced.PRODUCTION)
        compare(url, major)


def compare(url: str, major: int, role: str = "reader") -> None:
    facts = read_facts(DatabaseUrl.parse(url))
    tracer = traced.Tracer(url)
    wrong, count = [], 0
    try:
        for case in traced.cases():
            if case.since > major:
                continue
            statements = judge([("table", case.sql)], facts)
            locks, rewrites = traced.predicted(statements)
            locks = {name: lock for name, lock in locks.items() if facts.relations[name].kind != "S"}  # sequences bar no table
            run = traced.Case(**{**vars(case), "sql": case.sql.replace("reader", role)})
            if case.alone:
                (table,) = set(case.locks)
                real = tracer.first_lock(run, table), rewrites
                locks = {table: locks.get(table, "")}
            else:
                real = tracer.trace(run)
            told = (worst(statements), locks, rewrites)
            expected = (case.verdict, case.locks, case.rewrites)
            if told != expected or real != expected[1:]:
                wrong.append(f"{case.sql}\n  expected {expected}\n  told     {told}\n  real     {real}")
            count += 1
    finally:
        tracer.close()
    assert not wrong, "\n".join(wrong)
    assert count >= 200
