"""The command ``verify``: verify records in files, without network or secrets."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from azora_ci.cli.common import reported_errors


@click.command(
    short_help="Verify records in files, offline.",
    epilog="""
    The same without this package: verify_record.py in the record's artifact. Exit codes: 0 each record is proved; 1 one is not true;
    2 nothing proves a record.
    """,
)
@click.argument("records", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="RECORD...")
@click.option(
    "--sha256", "trusted", multiple=True, metavar="HEX", help="SHA-256 of a record, as the page of its run says it. May be repeated."
)
@click.option(
    "--public-key", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Public key of [evidence] signing (PEM). Signatures are read from RECORD.sig.json beside each record.",
)  # fmt: skip
def verify(records: tuple[Path, ...], trusted: tuple[str, ...], public_key: Path | None) -> None:
    """Verify the records of deployments and rollbacks in RECORD...: schema, canonical bytes, chain of hashes, signature.

    A record is proved by --sha256, by its signature, or by a proved record that names it as the one before. With several records, one
    that another names with another SHA-256 is found without any of these.
    """
    from azora_ci.record.audit.verify_record import UNPROVED
    from azora_ci.record.audit.verify_record import verify as prove
    from azora_ci.record.chain import LIMITS, parse_record, sha256
    from azora_ci.record.history import schema_flaw

    with reported_errors():
        files = {path: _read(path, LIMITS.size) for path in records}
        proofs, wrong = prove(files, list(trusted), public_key)
        for path, data in files.items():
            problem = None if path in wrong else schema_flaw(parse_record(data))
            if problem:
                wrong[path] = f"it does not fit its schema: {problem}"
    for path in files:
        mark, text = ("✗", wrong[path]) if path in wrong else ("✓", proofs[path]) if path in proofs else ("?", UNPROVED)
        click.echo(f"{mark} {path}: {text}")
    lost = sorted(set(trusted) - {sha256(data) for data in files.values()})
    for value in lost:
        click.echo(f"✗ no file has the SHA-256 {value}")
    sys.exit(1 if wrong or lost else 0 if len(proofs) == len(files) else 2)


def _read(path: Path, most: int) -> bytes:
    """Return the bytes of a record. Raises BadInputError for a larger file."""
    from azora_ci.core.errors import BadInputError

    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise BadInputError("No record", what=f"more than {most} bytes", where=str(path), next_step="name a record of a deployment")
    return data
