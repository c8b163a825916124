"""The pages of the static history. A record that does not verify is shown, with what is wrong with it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from azora_ci.core import schemas
from azora_ci.record import dora
from azora_ci.record.chain import Document
from azora_ci.record.history import entries, rows
from azora_ci.record.pages import html, leaves
from azora_ci.record.pages.report.material import Material
from azora_ci.record.pages.report.view import report
from azora_ci.record.site import charts

SHOWN_BYTES = 65536  # of what is no record
_BODY, _HEAD = '<a class="skip" href="#content">To the content</a>', '<meta charset="utf-8">'


@dataclass(frozen=True)
class Kept:
    """What lies, or should lie, in a record's place. ``record``: None when it is no valid record; ``problems``: why it is not believed.

    ``data``: its bytes; None: nothing is there. ``before``, ``rollback``: (SHA-256, record) of the success before and of its rollback.
    """

    location: str
    sha256: str | None
    data: bytes | None
    record: Document | None
    problems: tuple[str, ...] = ()
    before: tuple[str, Document] | None = None
    rollback: tuple[str, Document] | None = None

    @property
    def path(self) -> str:
        """Return the path of its page: <deployment-id>/<number>.html."""
        return "/".join(self.location.rsplit("/", 2)[1:]).removesuffix(".json") + ".html"

    @property
    def mark(self) -> str:
        """Return what its page is made of, as one SHA-256: a page with the same need not be written again."""
        others = [item[0] for item in (self.before, self.rollback) if item]
        facts = [self.location, self.sha256, list(self.problems), self.record is not None, *others, _look()]
        return hashlib.sha256(schemas.canonical(facts)).hexdigest()


@cache
def _look() -> str:
    """Return the SHA-256 of everything here that pages are made with."""
    files = sorted(path for path in html.FOLDER.rglob("*") if path.suffix in {".css", ".html", ".js", ".py"})
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def page(kept: Kept) -> str:
    """Return the page of a record: of a deployment its report; of a rollback every value; of what is no record its bytes as text."""
    navigation = html.fragment("site/navigation.html", kept=kept, file=kept.path.rpartition("/")[2].removesuffix(".html") + ".json")
    if kept.record is None:
        text = (kept.data or b"")[:SHOWN_BYTES].decode("utf-8", "replace")
        made = html.render("site/no_record.html", f"No record: {kept.location}", kept=kept, text=text)
    elif kept.record.get("kind") == "rollback":
        made = leaves.page(kept.record, kept.location, kept.sha256 or "", ("../index.html", "All deployments"))
    else:
        before, back = kept.before and kept.before[1], kept.rollback and kept.rollback[1]
        made = report(Material(record=kept.record, sha256=kept.sha256 or "", location=kept.location, before=before, rollback=back))
    made = made.replace(_HEAD, f'{_HEAD}\n<meta name="made-of" content="{kept.mark}">', 1)
    return made.replace(_BODY, _BODY + str(navigation), 1)


@dataclass(frozen=True)
class Circumstances:
    """What the first page says beside the records. ``location``: URL of the archive; ``strays``: pages of earlier runs whose record the
    archive does not have any more; ``until``, ``days``: the end of the period that is measured, and its length.
    """

    environment: str
    location: str
    verification: Mapping[str, Any]
    strays: Sequence[str]
    until: datetime
    days: int


def index(kept: Sequence[Kept], facts: Circumstances) -> str:
    """Return the first page: DORA's measures, their course, and all records. ``kept``: oldest first."""
    records = [(item.location, item.sha256 or "", item.record) for item in kept if item.record is not None]
    made = dora.deliveries(record for _, _, record in records)
    period = dora.measures(made, *dora.last_days(facts.until, facts.days))
    return html.render(
        "site/index.html",
        f"Deployments to {facts.environment}",
        rows=list(_rows(kept, {entry["location"]: entry for entry in entries(records)})),
        facts=facts,
        verification=facts.verification,
        loose=without_page(kept, facts.verification),
        doubted=[item for item in kept if item.problems],
        strays=facts.strays,
        period=period,
        monthly=(monthly := dora.months(made, facts.until)),
        figures=charts.figures(period, monthly, dora.MEASURES),
        rate=charts.rate,
    )


def without_page(kept: Iterable[Kept], verification: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the findings that are about no record with a page of its own."""
    places = {item.location for item in kept}
    return [finding for finding in verification["findings"] if finding["record"] not in places]


def _rows(kept: Iterable[Kept], listed: Mapping[str, Document]) -> Iterable[tuple[Kept, tuple[str, ...], str]]:
    """Yield (record, cells, tone), newest first."""
    for item in reversed(list(kept)):
        entry = listed.get(item.location)
        if entry is None:
            name, number = item.path.removesuffix(".html").split("/")
            text = "missing" if item.data is None else "no record"
            yield item, ("–", name, "–", f"{number}: {text}", "–", "–", "–", "–"), "bad"
            continue
        good = entry["status"] in {"success", "completed"} and not entry["rolled_back_by"]
        yield item, rows([entry])[0], "bad" if item.problems else "good" if good else "warn"
