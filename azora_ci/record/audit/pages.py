"""An audit as CSV and as one HTML file without scripts. What people and programs wrote stays text in both. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from html import escape
from typing import Any

from azora_ci.record.chain import Document

HEAD = ("time", "kind", "deployment", "version", "status", "who", "element", "answer", "detail", "field", "record", "sha256")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets would compute a cell that begins with one
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:75rem;color-scheme:light dark}table{border-collapse:collapse;width:100%}"
    "td,th{border:1px solid #8888;padding:.3rem .5rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}"
    ".no{font-weight:bold}section{break-inside:avoid}"
)
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><style>{style}</style></head><body><main><h1>{title}</h1>
{body}</main></body></html>
"""


def as_csv(audit: Document) -> str:
    """Return a row for each element of each sampled change, and one for each other change of the population, without element."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(HEAD)
    for change in audit["changes"]:
        facts = [change[name] for name in ("timestamp", "kind", "deployment_id", "version", "status", "triggered_by")]
        proof = [change["location"], change["sha256"]]
        for element in change["elements"] or [{"element": "not in the sample", "answer": "", "detail": "", "fields": []}]:
            cells = [*facts, element["element"], element["answer"], element["detail"], " ".join(element["fields"]), *proof]
            writer.writerow([_harmless(cell) for cell in cells])
    return text.getvalue()


def _harmless(cell: object) -> str:
    text = "" if cell is None else str(cell)
    return f"'{text}" if text.startswith(_FORMULA) else text


def as_html(audit: Document) -> str:
    """Return the audit as a page: the population, what is wrong with the archive, and each sampled change with its elements."""
    changes, found = audit["changes"], audit["verification"]["findings"]
    chain = [f"{item['finding']}: {item['record'] or 'a record'}: {item['detail']}" for item in found]
    lines = [
        f"{len(changes)} changes are recorded from {audit['from']} to {audit['to']}; {audit['sampled']} of them are the sample "
        f"(seed {audit['seed']}: those with the lowest SHA-256 of seed, space, URL).",
        f"{audit['verification']['records']} records of the archive were verified: {len(found)} findings.",
        *chain,
        *(f"set aside: {line}" for line in audit["set_aside"]),
    ]
    names = ("timestamp", "kind", "deployment_id", "version", "status", "triggered_by")
    rows = ([*(change[name] for name in names), "yes" if change["sampled"] else ""] for change in changes)
    body = "".join(f"<p>{_text(line)}</p>\n" for line in lines)
    body += "".join(_section(change) for change in changes if change["sampled"])
    body += "<h2>Population</h2>\n" + _table(("time", "kind", "deployment", "version", "status", "who", "sampled"), rows)
    return _PAGE.format(title=_text(f"Changes from {audit['from']} to {audit['to']}"), style=_STYLE, body=body)


def _section(change: dict[str, Any]) -> str:
    lines = "".join(_row(element, change["location"]) for element in change["elements"])
    title = f"{change['kind']} {change['deployment_id']}: {change['version'] or 'no version'}, {change['status']}"
    return (
        f"<section><h2>{_text(title)}</h2><p>{_text(change['location'])}<br>SHA-256 {_text(change['sha256'])}</p>\n"
        f"<table><tr><th>element</th><th>answer</th><th>what the record says</th><th>where</th></tr>{lines}</table></section>\n"
    )


def _row(element: dict[str, Any], location: str) -> str:
    mark = ' class="no"' if element["answer"] == "no" else ""
    cells = f"<td>{_text(element['element'])}</td><td{mark}>{_text(element['answer'])}</td><td>{_text(element['detail'])}</td>"
    return f"<tr>{cells}<td>{_source(element, location)}</td></tr>"


def _source(element: dict[str, Any], location: str) -> str:
    """Return the fields of the record as URLs with a JSON pointer, and links to what is on the web."""
    fields = [_text(f"{location}#{field}") for field in element["fields"]]
    links = [f'<a href="{_text(link)}">{_text(link)}</a>' for link in element["links"] if link.startswith("https://")]
    return "<br>".join([*fields, *links])


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = ["".join(f"<th>{_text(name)}</th>" for name in head), *("".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows)]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>\n"


def _text(value: object) -> str:
    return escape("" if value is None else str(value))
