"""What is said of each statement, word for word: ``python -m tests.database.migrations.judgement.told`` writes told.txt again."""

from __future__ import annotations

from collections.abc import Iterator

from azora_ci.database.migrations.judgement.judge import judge
from azora_ci.database.migrations.judgement.model import Action, Facts, KnownConstraint, Relation
from tests.database.migrations.judgement import traced

FILE = traced.FOLDER / "told.txt"
# The catalogue of production.sql, as far as the judgement uses it.
FACTS = Facts(
    known=True,
    relations={
        **dict.fromkeys(("parent", "t", "child", "billing.invoice", "part_1", "part_2", "heir", "base", "other"), Relation("r", 50, 8192)),
        **{"part": Relation("p"), "v": Relation("v"), "s": Relation("S"), "mv": Relation("m")},
    },
    types={
        **{("t", name): "integer" for name in ("a", "parent_id", "number", "twice", "key")},
        **{("t", "b"): "character varying(20)", ("t", "c"): "text", ("t", "n"): "numeric(10,2)", ("t", "ip"): "cidr"},
        ("t", "at"): "timestamp(3) without time zone",
    },
    constraints=(
        KnownConstraint("t", "t_id", "c", ("id",)),
        KnownConstraint("t", "t_parent", "f", ("parent_id",), "parent"),
        KnownConstraint("child", "child_t_id_fkey", "f", ("t_id",), "t"),
    ),
    indexes={"t_c": "t", "t_key": "t", "mv_id": "mv"},
    children={"part": ("part_1",), "base": ("heir",)},
    domains={"amount": True},
)


def lines() -> Iterator[str]:
    """Yield the statements of the table, of every kind and of releases, with what is said of each action."""
    kinds, releases = ((line.split(" | ", 1)[1] for line in table) for table in (traced.KINDS, traced.RELEASES))
    told = [*((case.sql, FACTS) for case in traced.cases()), *((sql, Facts()) for sql in kinds), *((sql, FACTS) for sql in releases)]
    for sql, facts in told:
        yield sql
        for statement in judge([("table", sql)], facts):
            yield from (f"  {_line(action)}" for action in statement.actions)


def _line(action: Action) -> str:
    locks = ", ".join(f"{name} {lock}" for name, lock in sorted(action.locks.items()))
    parts = {"locks": locks, "rewrites": ", ".join(sorted(action.rewrites)), "scans": ", ".join(sorted(action.scans))}
    notes = [f"{name} {value}" for name, value in parts.items() if value] + ["loses rows"] * action.loses
    return f"{action.what}: {action.verdict}: {action.reason} | {action.instead or '-'} | {'; '.join(notes) or '-'}"


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n", encoding="utf-8")
