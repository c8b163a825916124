"""The command ``history``: list deployments and rollbacks from the archive, and verify it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from azora_ci.cli.common import config_option, environment_option, open_archive, reported_errors

if TYPE_CHECKING:
    from azora_ci.clients.s3.objects import StoredObject
    from azora_ci.record.archive import Archive, Archived

SHOWN = 20  # entries, unless more are asked for


@click.command(
    short_help="List deployments and rollbacks; verify their records.",
    epilog="""
    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL_S3) open the archive; reading is
    enough. Exit codes: 0 done; 1 --verify found something; 2 something is missing or mistyped; 3 the archive cannot be reached.
    """,
)
@click.option("--verify", is_flag=True, help="Read every record, and name what was changed, is missing, was inserted or moved.")
@click.option(
    "--expect", "expected", multiple=True, metavar="SHA256",
    help="With --verify: a record that must be there, such as the newest one, by the SHA-256 on the page of its run. May be repeated.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), default=SHOWN, show_default=True, help="List the newest so many.")
@click.option("--json", "as_json", is_flag=True, help="Print a document that fits history.schema.json.")
@environment_option
@config_option
def history(*, verify: bool, expected: tuple[str, ...], limit: int, as_json: bool, environment: str, config_path: Path) -> None:
    """List the deployments and rollbacks of the archive, newest first, or verify that no record was tampered with.

    Every record names the SHA-256 of the one before it. No later record names the newest: its signature shows that it is as it was
    written, or --expect.
    """
    from azora_ci.core import schemas
    from azora_ci.record import history as records

    with reported_errors():
        archive = open_archive(config_path, environment)
        stored = archive.records()
        chosen = stored if verify else stored[-limit:]
        archived = archive.read_all(chosen)
        archived, verification = verified(archive, chosen, archived, expected) if verify else (archived, None)
        listed = records.entries(valid_records(archive, archived[-limit:]))
        url = archive.bucket.url(f"records/{environment}/")
        document = records.document(environment, url, len(stored), listed, archive.set_aside, verification)
        schemas.validate(document, records.SCHEMA, where="the history")
    click.echo(schemas.canonical(document).decode(), nl=False) if as_json else _show(document)
    sys.exit(1 if verification and verification["findings"] else 0)


def valid_records(archive: Archive, archived: Sequence[Archived]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (URL, SHA-256, record) of those that fit their schema; the archive names the others as set aside."""
    from azora_ci.cli.archive.cores import spread

    whole, fitting = [item for item in archived if not item.flaw], []
    for item, problem in zip(whole, spread(_schema_flaw, [item.data for item in whole]), strict=True):
        if problem:
            archive.put_aside(item, problem)
        else:
            fitting.append((archive.bucket.url(item.key), item.sha256, item.document))
    return fitting


def _schema_flaw(data: bytes) -> str | None:
    from azora_ci.record.chain import parse_record
    from azora_ci.record.history import schema_flaw

    return schema_flaw(parse_record(data))


def verified(
    archive: Archive, stored: Sequence[StoredObject], archived: Sequence[Archived], expected: Sequence[str] = ()
) -> tuple[list[Archived], dict[str, Any]]:
    """Return what was read, and the verification of all records as it stands in the history's document.

    A record from before signing was turned on is no longer set aside, since the verification shows that it is one.
    """
    from azora_ci.clients.signing.signatures import NONE
    from azora_ci.record import verification
    from azora_ci.record.chain import parse_record
    from azora_ci.record.history import schema_flaw

    url, is_signing = archive.bucket.url, archive.signatures.name != NONE
    records = {url(item.key): item for item in archived}
    links = [
        verification.link(url(item.key), item.data, seen.modified, damage=item.flaw, is_signing=is_signing)
        for seen, item in zip(stored, archived, strict=True)
        if seen.modified is not None
    ]
    chain = verification.Chain(links, lambda location: schema_flaw(parse_record(records[location].data)))
    findings, early = chain.findings(expected, [url(key) for key in archive.signed_keys()]), chain.unsigned_before()
    document = {
        "records": len(links),
        "signing": archive.signatures.name,
        "signed": sum(item.is_signed for item in links),
        "unsigned_before_signing": len(early),
        "newest_sha256": chain.links[-1].sha256 if chain.links else None,
        "findings": verification.documents(findings),
    }
    return [archive.believe(item) if url(item.key) in early else item for item in archived], document


def _show(document: dict[str, Any]) -> None:
    from azora_ci.cli.edge.report import table
    from azora_ci.record.history import HEAD, rows

    entries, found = document["entries"], document["verification"]
    click.echo(table([HEAD, *rows(entries)]) if entries else f"No record lies in {document['location']}")
    if document["archived"] > len(entries):
        click.echo(f"\n{len(entries)} of {document['archived']} records in {document['location']}; --limit shows more")
    for line in document["set_aside"]:
        click.echo(f"! set aside: {line}", err=True)
    if found is None:
        return
    for finding in found["findings"]:
        click.echo(f"✗ {finding['finding']}: {finding['record'] or 'a record'}: {finding['detail']}")
    mark = "✗" if found["findings"] else "✓"
    signed = f"{found['signed']} are signed by {found['signing']}" if found["signing"] != "none" else "they are not signed"
    early = found["unsigned_before_signing"]
    click.echo(f"\n{mark} {found['records']} records, {len(found['findings'])} findings; {signed}{f', {early} are older' if early else ''}")
    if found["signing"] == "none" and found["newest_sha256"]:
        click.echo(f"  No later record names the newest yet: compare its SHA-256, {found['newest_sha256']}, with the page of its run")
