"""The command ``audit``: the changes of a period and a sample of them, for whoever audits change management."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

import click

from azora_ci.cli.archive.history import valid_records, verification_of
from azora_ci.cli.common import config_option, environment_option, open_archive, reported_errors

_DAY = click.DateTime(["%Y-%m-%d"])


@click.command(short_help="Write the changes of a period and a sample of them, for an auditor.")
@click.option("--from", "first", type=_DAY, required=True, help="First day of the period (UTC).")
@click.option("--to", "last", type=_DAY, required=True, help="Last day of the period (UTC).")
@click.option("--sample", type=click.IntRange(min=1), default=25, show_default=True, help="How many changes are looked at in full.")
@click.option("--seed", default="1", show_default=True, metavar="TEXT", help="Decides which; the same seed draws the same sample.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("audit"), show_default=True, help="Folder that is written."
)
@environment_option
@config_option
def audit(*, first: datetime, last: datetime, sample: int, seed: str, out: Path, environment: str, config_path: Path) -> None:  # noqa: PLR0913 - its options
    """Write audit.json, audit.csv and audit.html: every deployment and rollback that the archive has of a period, and for a sample of
    them what an auditor asks, with the field of the record that answers it. The whole archive is verified first.

    Exit codes: 0 done; 1 the verification found something, which the files name; 2 bad input; 3 the archive cannot be reached.
    """
    from azora_ci.core import schemas
    from azora_ci.core.errors import BadInputError
    from azora_ci.record.audit import pages
    from azora_ci.record.audit import sample as samples

    with reported_errors():
        if last < first:
            raise BadInputError("No period", what="--to is before --from", where="--from, --to", next_step="exchange them")
        archive = open_archive(config_path, environment)
        stored = archive.records()
        archived = archive.read_all(stored)
        verification = verification_of(archive, stored, archived, ())
        records = valid_records(archive, archived)
        document = samples.document(records, (first.date(), last.date()), (sample, seed), verification, archive.set_aside)
        schemas.validate(document, samples.SCHEMA, where="the audit")
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.json").write_bytes(schemas.canonical(document))
    (out / "audit.csv").write_text(pages.as_csv(document), encoding="utf-8", newline="")
    (out / "audit.html").write_text(pages.as_html(document), encoding="utf-8")
    findings = verification["findings"]
    click.echo(
        f"{len(document['changes'])} changes from {first.date()} to {last.date()}, {document['sampled']} in the sample: {out}/audit.html"
    )
    for finding in findings:
        click.echo(f"✗ {finding['finding']}: {finding['record'] or 'a record'}: {finding['detail']}")
    sys.exit(1 if findings else 0)
