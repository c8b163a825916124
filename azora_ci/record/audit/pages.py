"""An audit as CSV and as one HTML file without scripts. What people and programs wrote stays text in both. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from azora_ci.record.audit.sample import file_of
from azora_ci.record.chain import Document
from azora_ci.record.pages import html, leaves

_CHANGE = ("timestamp", "kind", "deployment_id", "version", "status", "triggered_by")
HEAD = ("time", "kind", "deployment", "version", "status", "who", "element", "answer", "detail", "field", "record", "sha256", "review due")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets would compute a cell that begins with one


def as_csv(audit: Document) -> str:
    """Return a row for each element of each sampled change, one for each other change of the population, and one for each finding."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(HEAD)
    for row in _rows(audit):
        writer.writerow([_harmless(cell) for cell in row])
    return text.getvalue()


def _rows(audit: Document) -> Iterator[list[object]]:
    for change in audit["changes"]:
        due = (change["emergency"] or {}).get("review_due")
        for element in change["elements"] or [{"element": "not in the sample", "answer": "", "detail": "", "fields": []}]:
            answer = [element["element"], element["answer"], element["detail"], " ".join(element["fields"])]
            yield [*(change[name] for name in _CHANGE), *answer, change["location"], change["sha256"], due]
    hosts = audit["hosts"]
    for finding in hosts["findings"]:
        facts = [finding["time"], "journal", finding["deployment_id"], finding["version"], finding["finding"], None]
        yield [*facts, "deployed by this project", "no", finding["detail"], None, None, None, None]
    reasons = [hosts["not_asked"]] if hosts["not_asked"] else [f"{host}: {why}" for host, why in hosts["left_out"].items()]
    for reason in reasons:
        yield [*[None] * 6, "hosts asked", "no", reason, None, None, None, None]


def _harmless(cell: object) -> str:
    text = "" if cell is None else str(cell)
    return f"'{text}" if text.startswith(_FORMULA) else text


def as_html(audit: Document) -> str:
    """Return the audit as a page: what is wrong, what the hosts say, emergencies, each sampled change with its elements, the population."""
    changes = audit["changes"]
    fields = {field for change in changes for element in change["elements"] or () for field in element["fields"]}
    return html.render(
        "audit.html",
        f"Changes from {audit['from']} to {audit['to']}",
        audit=audit,
        emergencies=[change for change in changes if change["emergency"]],
        files={change["location"]: file_of(change["location"]) for change in changes},
        fragments={field: leaves.fragment(field) for field in fields},
    )
