"""Write a deployment's HTML report beside its record, and gather what it is made of: the archive's earlier evidence, the commit's SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from azora_ci.core import schemas
from azora_ci.core.errors import AzoraError
from azora_ci.record import chain
from azora_ci.record.archive import READERS, Archive
from azora_ci.record.chain import Document
from azora_ci.record.deployment import SCHEMA
from azora_ci.record.fragments import Fragment
from azora_ci.record.pages.report.material import Material

LONGEST_SQL_BYTES = 1024 * 1024  # of a migration; the SQL of longer ones is left out


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a report's parts come from: the record's bytes and URL, the verified fragments, and the folder of the commit's migrations."""

    data: bytes
    location: str | None
    fragments: Mapping[str, Fragment]
    migrations_dir: Path | None = None
    rollback: Document | None = None
    next_steps: tuple[str, ...] = ()


def write(folder: Path, origin: Origin, archive: Archive | None) -> Path:
    """Write ``deployment-report-<id>.html`` into a folder and return its path. Without an archive nothing earlier is compared."""
    from azora_ci.record.pages.report.view import report  # jinja2 takes its time, and most steps make no page

    record = chain.parse_record(origin.data)
    earlier = record["previous_deployment_id"]
    material = Material(
        record=record,
        sha256=chain.sha256(origin.data),
        location=origin.location,
        fragments=origin.fragments,
        rollback=origin.rollback,
        before=last_record(archive, earlier) if archive and earlier else None,
        sql=verified_sql(origin.migrations_dir, origin.fragments) if origin.migrations_dir else {},
        next_steps=origin.next_steps,
    )
    path = folder / f"deployment-report-{record['deployment_id']}.html"
    path.write_text(report(material), encoding="utf-8")
    return path


def tried(write_report: Callable[[], Path], warn: Callable[[str, str], None]) -> Path | None:
    """Return the report, or None and a warning: a report that cannot be made stops nothing, as the record is what counts."""
    try:
        return write_report()
    except Exception as error:  # whatever it is: evidence of other versions, a full disk, a fault of ours
        reason = f"{error.title}: {error.what}" if isinstance(error, AzoraError) else f"{type(error).__name__}: {error}"
        warn("No HTML report", f"It could not be made: {reason}. The record is complete without it.")
        return None


def last_record(archive: Archive, deployment_id: str) -> Document | None:
    """Return the record of a deployment's last attempt; None when the archive does not answer, or has none that fits its schema."""
    try:
        records = archive.records_of(deployment_id)
    except AzoraError:
        return None
    document = chain.parse_record(records[max(records)]) if records else {}
    return None if schemas.problems(document, SCHEMA) else document


def archived_fragments(archive: Archive, record: Document) -> dict[str, Fragment]:
    """Return the fragments of a record from the archive: those whose SHA-256 it names. What is not there or differs is left out."""
    base, location = archive.bucket.url(""), record["artifacts_location"] or ""
    if not location.startswith(base):
        return {}
    places = Material(record=record, sha256="").places(*record["evidence"])

    def read(job: str, key: str) -> Fragment | None:
        try:
            fragment = Fragment(**schemas.read(archive.bucket.read(key), f"fragment-{job}", where=archive.bucket.url(key)))
        except AzoraError:
            return None
        same = chain.sha256(schemas.canonical(fragment.document())) == record["evidence"][job]["fragment_sha256"]
        return fragment if same else None

    with ThreadPoolExecutor(READERS) as pool:
        fragments = pool.map(lambda place: read(place.job, location.removeprefix(base) + place.fragment), places)
    return {fragment.job: fragment for fragment in fragments if fragment is not None}


def verified_sql(migrations_dir: Path, fragments: Mapping[str, Fragment]) -> dict[str, str]:
    """Return migration -> SQL, for files of the commit that have the SHA-256 that was tried on the copy or applied."""
    evidence = {job: fragments[job].evidence for job in ("database-backup", "database-migrations") if job in fragments}
    checksums = {file["name"]: file["sha256"] for file in (evidence.get("database-backup", {}).get("trial") or {}).get("files") or []}
    checksums |= {migration["name"]: migration["checksum"] for migration in evidence.get("database-migrations", {}).get("applied") or []}
    texts = {}
    for name, checksum in checksums.items():
        path = migrations_dir / Path(name).name / "migration.sql"
        if path.is_file() and path.stat().st_size <= LONGEST_SQL_BYTES and chain.sha256(data := path.read_bytes()) == checksum:
            texts[name] = data.decode(errors="replace")
    return texts
