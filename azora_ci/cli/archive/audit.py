"""The command ``audit``: the changes of a period and a sample of them, for whoever audits change management."""

from __future__ import annotations

import contextlib
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from azora_ci.cli.archive.history import valid_records, verified
from azora_ci.cli.common import config_option, environment_option, open_archive, reported_errors

if TYPE_CHECKING:
    from azora_ci.record.archive import Archive, Archived

_DAY = click.DateTime(["%Y-%m-%d"])


@click.command(short_help="Write the changes of a period and a sample of them, for an auditor.")
@click.option("--from", "first", type=_DAY, required=True, help="First day of the period (UTC).")
@click.option("--to", "last", type=_DAY, required=True, help="Last day of the period (UTC).")
@click.option("--sample", type=click.IntRange(min=1), default=25, show_default=True, help="How many changes are looked at in full.")
@click.option("--seed", default="1", show_default=True, metavar="TEXT", help="Decides which; the same seed draws the same sample.")
@click.option(
    "--hosts/--no-hosts", "hosts", default=None,
    help="Read the hosts' own journals, too, for a deployment that the archive does not have.  [default: where PROD_HOST is set]",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("audit"), show_default=True, help="Folder that is written."
)
@environment_option
@config_option
def audit(  # noqa: PLR0913 - its options
    *, first: datetime, last: datetime, sample: int, seed: str, hosts: bool | None, out: Path, environment: str, config_path: Path
) -> None:
    """Write audit.json, audit.csv and audit.html: every deployment and rollback that the archive has of a period, and for a sample of
    them what an auditor asks, with the field of the record that answers it, and the record. The whole archive is verified first.

    Exit codes: 0 done; 1 the verification or the hosts' journals show something, which the files name; 2 bad input; 3 the archive
    cannot be reached, or a host, which the files name.
    """
    from azora_ci.cli.archive import journals
    from azora_ci.core import schemas
    from azora_ci.core.clock import Clock
    from azora_ci.core.errors import BadInputError
    from azora_ci.record.audit import journals as compared
    from azora_ci.record.audit import sample as samples

    with reported_errors():
        if last < first:
            raise BadInputError("No period", what="--to is before --from", where="--from, --to", next_step="exchange them")
        period, noted = (first.date(), last.date()), journals.read(config_path, wanted=hosts)
        archive = open_archive(config_path, environment)
        stored = archive.records()
        archived, verification = verified(archive, stored, archive.read_all(stored))
        records = valid_records(archive, archived)
        ids, known = [item.key.split("/")[2] for item in stored], [(location, record) for location, _, record in records]
        on_hosts = compared.document(noted, ids, known, period, Clock().now())
        document = samples.document(records, period, (sample, seed), verification, archive.set_aside, on_hosts)
        schemas.validate(document, samples.SCHEMA, where="the audit")
        _write(out, document, archive, archived)
    _say(document, out)
    findings = [*verification["findings"], *on_hosts["findings"]]
    sys.exit(1 if findings else 3 if noted.left_out else 0)


def _write(out: Path, document: dict[str, Any], archive: Archive, archived: list[Archived]) -> None:
    """Write the audit, and for each sampled record its bytes, its signature, all its values, and the script that verifies it."""
    from azora_ci.clients.s3.objects import NotThereError
    from azora_ci.core import schemas
    from azora_ci.record.audit import pages
    from azora_ci.record.audit.artifact import write_beside
    from azora_ci.record.audit.sample import file_of
    from azora_ci.record.pages import leaves

    (out / "records").mkdir(parents=True, exist_ok=True)
    (out / "audit.json").write_bytes(schemas.canonical(document))
    (out / "audit.csv").write_text(pages.as_csv(document), encoding="utf-8", newline="")
    (out / "audit.html").write_text(pages.as_html(document), encoding="utf-8")
    sampled = {change["location"] for change in document["changes"] if change["sampled"]}
    for item in archived:
        location = archive.bucket.url(item.key)
        if location in sampled:
            file = out / f"{file_of(location)}.json"
            file.write_bytes(item.data)
            with contextlib.suppress(NotThereError):  # it is of a time before records were signed
                write_beside(file, archive, location)
            page = leaves.page(item.document, location, item.sha256, ("../audit.html", "The audit"))
            file.with_suffix(".html").write_text(page, encoding="utf-8")


def _say(document: dict[str, Any], out: Path) -> None:
    hosts = document["hosts"]
    period = f"from {document['from']} to {document['to']}"
    click.echo(f"{len(document['changes'])} changes {period}, {document['sampled']} in the sample: {out}/audit.html")
    for finding in document["verification"]["findings"]:
        click.echo(f"✗ {finding['finding']}: {finding['record'] or 'a record'}: {finding['detail']}")
    for finding in hosts["findings"]:
        click.echo(f"✗ {finding['finding']}: {finding['deployment_id']} ({finding['version']}): {finding['detail']}")
    if hosts["not_asked"]:
        click.echo(f"! the hosts were not asked: {hosts['not_asked']}", err=True)
    for host, why in hosts["left_out"].items():
        click.echo(f"! {host} was not asked: {why}", err=True)
