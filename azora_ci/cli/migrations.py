"""The command ``migrations``: judge migrations at a desk or in a pull request, as a deployment would."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from azora_ci.cli.common import own_processes, reported_errors

if TYPE_CHECKING:
    from azora_ci.database.migrations.judgement.model import Facts
    from azora_ci.gates.migrations import Judgement


@click.group(short_help="Say what migrations lock, and whether the running version bears them.")
def migrations() -> None:
    """Judge migrations before anybody applies them."""


@migrations.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--database-url-from", "variable", metavar="VARIABLE",
    help="Environment variable with the connection string of a database like production's, which is only read: sizes of its tables, its "
    "keys and types, and with Prisma which migrations are pending. A connection string holds a password, so none is taken here.",
)  # fmt: skip
@click.option("--schema", default="public", show_default=True, help="Schema of Prisma's table.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def check(path: Path, variable: str | None, schema: str, *, as_json: bool) -> None:
    """Judge the SQL of PATH: a file, a folder of migrations, or an application. Without a database every migration counts as pending.

    Exit code 0: the running version bears all of it; 1: it does not, or nobody can say; 2: PATH or the database's address cannot be used;
    3: the database does not answer.
    """
    with reported_errors():
        judgement = _judge(path, variable, schema)
        click.echo(json.dumps(judgement.document(), indent=2, ensure_ascii=False) if as_json else _text(judgement))
        sys.exit(1 if judgement.doubtful() else 0)


def _judge(path: Path, variable: str | None, schema: str) -> Judgement:
    from azora_ci.database.migrations import files
    from azora_ci.database.migrations.judgement.model import Facts
    from azora_ci.gates import squawk
    from azora_ci.gates.migrations import examine

    found = files.find(path)
    processes = own_processes()
    found, facts = _in_database(found, variable, schema) if variable else (found, Facts())
    return examine(files.read(found), facts, lambda names: squawk.remarks(names, processes))


def _in_database(found: list[Path], variable: str, schema: str) -> tuple[list[Path], Facts]:
    """Return the files that are pending in a database, all that are not Prisma's, and what its catalogue says."""
    from azora_ci.core.environment import process_environment
    from azora_ci.core.errors import BadInputError
    from azora_ci.database.migrations import prisma
    from azora_ci.database.migrations.production import read_facts
    from azora_ci.database.postgres import DatabaseUrl

    text = process_environment().get(variable)
    if not text:
        step = "export it; it is given by its name, because command lines are seen by others"
        named = f"{variable} is not set" if variable.isidentifier() else "what it names is no variable"
        raise BadInputError("No connection string", what=named, where="--database-url-from", next_step=step)
    url = DatabaseUrl.parse(text, variable)
    applied = {row.name for row in prisma.read_table(url, prisma.schema_of(url, schema)) if row.applied}
    return [file for file in found if file.name != "migration.sql" or file.parent.name not in applied], read_facts(url)


def _text(judgement: Judgement) -> str:
    marks: dict[str, Any] = {"incompatible": "✗", "unknown": "?", "compatible": "-"}
    lines = [
        f"{marks[finding.verdict]} {finding.file}:{finding.line}: {finding.verdict}\n    " + str(finding).replace("\n", "\n    ")
        for finding in judgement.findings
    ]
    beside = "squawk was asked, too" if judgement.squawk else "squawk is not installed"
    counted = f"{judgement.statements} statements in {len(judgement.files)} files, {beside}"
    told = {"compatible": "✓ the running version bears all of it", "unknown": "? the running version may not bear this"}
    return "\n".join([*lines, f"{told.get(judgement.verdict, '✗ the running version does not bear this')} ({counted})"])
