"""The command ``site``: the history of the archive as static pages, with DORA's measures."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from azora_ci.cli.archive.history import valid_records, verified
from azora_ci.cli.common import config_option, environment_option, open_archive, reported_errors

if TYPE_CHECKING:
    from azora_ci.record.archive import Archive, Archived
    from azora_ci.record.chain import Document
    from azora_ci.record.site.pages import Kept

DAYS = 90
HEAD_BYTES = 300  # of a page, in which its mark stands


@click.command(
    short_help="Write the history of the archive as static pages, with DORA's measures.",
    epilog="""
    AWS_* variables open the archive, as for history; reading is enough. Exit codes: 0 done; 1 done, and the pages say what does not
    verify; 2 something is missing or mistyped; 3 the archive cannot be reached.
    """,
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder that is written, one an environment.")
@click.option("--days", type=click.IntRange(min=1), default=DAYS, show_default=True, help="Days up to now that the measures speak of.")
@environment_option
@config_option
def site(*, out: Path, days: int, environment: str, config_path: Path) -> None:
    """Write a page for each deployment and rollback of the archive, and index.html: all of them, and DORA's five measures by month.

    The whole archive is verified first. What does not verify is shown and marked. A page that would stay the same is not written again,
    so that the folder can be kept and published after every deployment. The pages load nothing and need no scripts.
    """
    from azora_ci.core.clock import Clock
    from azora_ci.record.audit import verify_record
    from azora_ci.record.site import pages

    with reported_errors():
        archive = open_archive(config_path, environment)
        stored = archive.records()
        archived, verification = verified(archive, stored, archive.read_all(stored))
        valid = {location: record for location, _, record in valid_records(archive, archived)}
        prefix = archive.bucket.url(f"records/{environment}/")
        kept = list(_kept(archive, archived, valid, verification["findings"], prefix))
    out.mkdir(parents=True, exist_ok=True)
    strays = list(_strays(out, {item.path for item in kept}))
    written = _write_pages(out, kept)
    facts = pages.Circumstances(environment, prefix, verification, strays, Clock().now(), days)
    (out / "index.html").write_text(pages.index(kept, facts), encoding="utf-8")
    (out / "verify_record.py").write_bytes(Path(verify_record.__file__).read_bytes())
    wrong = [item for item in kept if item.problems]
    for item in wrong:
        click.echo(f"✗ {item.location}: {'; '.join(item.problems)}")
    for finding in pages.without_page(kept, verification):
        click.echo(f"✗ {finding['finding']}: {finding['record'] or 'a record'}: {finding['detail']}")
    for path in strays:
        click.echo(f"✗ {out / path}: an earlier run made it, and the archive does not have its record any more")
    click.echo(f"{len(kept)} records, {written} pages written, {len(kept) - written} as they were: {out}/index.html")
    sys.exit(1 if wrong or strays or verification["findings"] else 0)


def _kept(
    archive: Archive, archived: Sequence[Archived], valid: dict[str, Document], findings: Iterable[dict[str, Any]], prefix: str
) -> Iterator[Kept]:
    """Yield what lies in each record's place, oldest first, with what is wrong with it; then what should lie there, and does not."""
    from azora_ci.record.archive import RECORD_KEY
    from azora_ci.record.site.pages import Kept

    problems: dict[str, list[str]] = {}
    for finding in findings:
        if finding["record"]:
            problems.setdefault(finding["record"], []).append(f"{finding['finding']}: {finding['detail']}")
    sound = {location: record for location, record in valid.items() if location not in problems}
    back = _rollbacks(archive, archived, sound)
    before: tuple[str, Document] | None = None
    for item in archived:
        location, record = archive.bucket.url(item.key), valid.get(archive.bucket.url(item.key))
        wrong = problems.pop(location, [])
        flaw = archive.reason(item.key)
        if flaw and flaw not in " ".join(wrong):
            wrong.append(flaw)
        rollback = back.get(item.key.split("/")[2]) if record and "kind" not in record else None
        yield Kept(location, item.sha256, item.data, record, tuple(wrong), before, rollback)
        if record and not wrong and record["status"] == "success":
            before = item.sha256, record
    for location, wrong in problems.items():
        # A forged record can name any place as that of the one before; no page is written by such a name.
        if location.startswith(prefix) and RECORD_KEY.fullmatch(location.removeprefix(archive.bucket.url(""))):
            yield Kept(location, None, None, None, tuple(wrong))


def _rollbacks(archive: Archive, archived: Iterable[Archived], valid: dict[str, Document]) -> dict[str, tuple[str, Document]]:
    """Return deployment id -> SHA-256 and record of its last rollback that verifies."""
    listed = ((item.sha256, valid.get(archive.bucket.url(item.key))) for item in archived if not archive.reason(item.key))
    return {record["deployment_id"]: (digest, record) for digest, record in listed if record and record.get("kind") == "rollback"}


def _strays(out: Path, paths: set[str]) -> Iterator[str]:
    """Yield the pages of earlier runs to which no record belongs."""
    for file in sorted(out.glob("*-*/*.html")):
        path = file.relative_to(out).as_posix()
        if path not in paths and b'<meta name="made-of"' in _head(file):
            yield path


def _write_pages(out: Path, kept: Iterable[Kept]) -> int:
    """Write the pages that are not there yet, or would be others, each with the bytes of its record beside it; return how many."""
    from azora_ci.cli.archive.cores import spread

    changed = [(out / item.path, item) for item in kept if item.mark.encode() not in _head(out / item.path)]
    return sum(spread(_write_page, changed))


def _write_page(change: tuple[Path, Kept]) -> bool:
    from azora_ci.record.site import pages

    file, item = change
    file.parent.mkdir(parents=True, exist_ok=True)
    if item.data is not None:
        file.with_suffix(".json").write_bytes(item.data)
    part = file.with_suffix(".part")
    part.write_text(pages.page(item), encoding="utf-8")
    part.replace(file)
    return True


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(HEAD_BYTES)
    except FileNotFoundError:
        return b""
