"""Where the judgement of migrations and their trial on the copy disagree is said, and nothing else."""

from __future__ import annotations

import pytest

from azora_ci.database.migrations.judgement.judge import judge
from azora_ci.database.migrations.judgement.model import Facts
from azora_ci.database.migrations.judgement.model import Relation as Known
from azora_ci.database.migrations.trial.comparison import surprises
from azora_ci.database.migrations.trial.copy import Relation

FACTS = Facts(known=True, relations={"Orders": Known("r"), "app.Users": Known("r")}, types={("Orders", "id"): "integer"})
EARLIER = {1: Relation('"Orders"', "r", 11), 2: Relation('app."Users"', "r", 12), 3: Relation('"Orders_pkey"', "i", 13)}
ALL_WAIT, WRITERS_WAIT = "AccessExclusiveLock", "ShareLock"


def found(sql: str, blocked: dict[str, str], rewritten: tuple[str, ...] = ()) -> list[str]:
    entries = [{"table": table, "mode": mode, "seconds": 0.1} for table, mode in blocked.items()]
    return surprises(judge([("1_a", sql)], FACTS), EARLIER, entries, rewritten)


@pytest.mark.parametrize(
    ("sql", "blocked", "rewritten"),
    [
        ('ALTER TABLE "Orders" ADD COLUMN note text', {'"Orders"': ALL_WAIT}, ()),
        ('ALTER TABLE app."Users" ADD COLUMN note text', {'app."Users"': ALL_WAIT}, ()),
        ('CREATE INDEX ON "Orders" (id)', {'"Orders"': WRITERS_WAIT}, ()),
        ('ALTER TABLE "Orders" ALTER COLUMN id TYPE bigint', {'"Orders"': ALL_WAIT}, ('"Orders"', '"Orders_pkey"')),
        ('TRUNCATE "Orders"', {}, ()),  # no event trigger tells of it
        ("CREATE TABLE fresh (id int); ALTER TABLE fresh ADD COLUMN b int", {}, ()),
    ],
)
def test_what_was_foreseen_is_no_surprise(sql: str, blocked: dict[str, str], rewritten: tuple[str, ...]):
    assert found(sql, blocked, rewritten) == []


def test_each_disagreement_is_a_line():
    add = 'ALTER TABLE "Orders" ADD COLUMN note text'
    assert found(add, {}) == ["Orders: expected that nobody can read or write, on the copy nobody waits"]
    assert found(add, {'"Orders"': ALL_WAIT, 'app."Users"': WRITERS_WAIT}) == [
        "app.Users: expected that nobody waits, on the copy nobody can write"
    ]
    assert found(add, {'"Orders"': ALL_WAIT}, ('"Orders"',)) == ["Orders: its rewriting was not expected"]
    retype = 'ALTER TABLE "Orders" ALTER COLUMN id TYPE bigint'
    assert found(retype, {'"Orders"': ALL_WAIT}) == ["Orders: expected to be rewritten, and is not"]
