"""The static history of a real archive: every record has its page, and what does not verify is shown as such."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from azora_ci.record.archive import Archive
from tests.cli.archive.test_history import keep, replace, run, take_back
from tests.support import years
from tests.support.stores import Stores

OUT = Path("site")
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"


def made(*more: str) -> tuple[int, list[str]]:
    code, output = run("--out", "site", *more, command="site")
    return code, output.splitlines()


def page(path: str) -> str:
    return (OUT / path).read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """Tags, links and the policy of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        facts = dict(attrs)
        if tag == "a":
            self.links.append(facts["href"])
        if facts.get("http-equiv") == "Content-Security-Policy":
            self.policy = facts["content"]


def test_every_record_has_a_page_and_a_second_run_writes_none_again(archive: Archive, s3_server: Stores):
    kept = years.chained(list(years.history(30)), archive.bucket.name)
    years.keep(s3_server, archive.bucket.name, kept)
    code, lines = made()
    assert (code, lines) == (0, ["30 records, 30 pages written, 0 as they were: site/index.html"])
    index = Parsed(page("index.html"))
    paths = ["/".join(item.key.split("/")[2:]).replace(".json", ".html") for item in kept]
    assert [link for link in index.links if link.endswith(".html")] == paths[::-1]
    for item, path in zip(kept, paths, strict=True):
        assert (OUT / path).with_suffix(".json").read_bytes() == item.data
        parsed = Parsed(page(path))
        assert parsed.links[:3] == ["#content", "../index.html", f"{Path(path).stem}.json"]
        assert "default-src 'none'" in parsed.policy and "unsafe" not in parsed.policy
    before = {path: (OUT / path).stat().st_mtime_ns for path in paths}
    more = years.deployed(years.START.replace(year=2027)) | {"previous_record_sha256": None}
    archive.keep_record({**more, "previous_record_sha256": archive.newest().sha256})
    assert made() == (0, ["31 records, 1 pages written, 30 as they were: site/index.html"])
    assert before == {path: (OUT / path).stat().st_mtime_ns for path in paths}


def test_what_does_not_verify_is_shown_and_marked(archive: Archive):
    places = [keep(archive, 1764000000 + 100 * number) for number in range(7)]  # each shows whether the one before is whole
    assert made() == (0, ["7 records, 7 pages written, 0 as they were: site/index.html"])
    keys = [place.split("/", 3)[3] for place in places]
    replace(archive, keys[1], archive.bucket.read(keys[1]).replace(b"octocat", b"mallory"))
    replace(archive, keys[3], b"<script>alert(1)</script>")
    archive.bucket.calls.call("delete_object", "test", Bucket=archive.bucket.name, Key=keys[5])
    archive.bucket.put_once("records/production/1765000000-abc123/1.json", b"[" * 2000, content_type="application/json")
    code, lines = made()
    assert code == 1 and lines[-1].startswith("8 records, "), lines
    index = page("index.html")
    assert index.count("does not verify</strong>") == 4 and "✗ not everything verifies" in index
    names = [key.split("/")[2] + "/1.html" for key in keys]
    stranger = "1765000000-abc123/1.html"
    for name, words in ((names[1], "changed: "), (names[3], "changed: "), (names[5], "missing: "), (stranger, "inserted: ")):
        assert "This record does not verify" in page(name) and words in page(name), name
    assert "mallory" in page(names[1]) and "The record is missing" in page(names[5])
    assert "script" not in Parsed(page(names[3])).tags and "&lt;script&gt;alert(1)" in page(names[3])
    assert not [name for name in names[::2] if "does not verify" in page(name)]


def test_a_record_that_vanished_without_a_trace_is_still_missed_by_the_pages_of_before(archive: Archive):
    keep(archive, 1764000000)
    last = keep(archive, 1764000100).split("/", 3)[3]
    assert made()[0] == 0
    archive.bucket.calls.call("delete_object", "test", Bucket=archive.bucket.name, Key=last)
    code, lines = made()
    assert (code, lines[0]) == (
        1,
        "✗ site/1764000100-abc123/1.html: an earlier run made it, and the archive does not have its record any more",
    )
    assert "1764000100-abc123/1.html" in page("index.html") and (OUT / "1764000100-abc123/1.html").exists()


def test_the_page_of_a_deployment_changes_when_it_is_taken_back(archive: Archive):
    keep(archive, 1764000000)
    made()
    assert "The rollback" not in page("1764000000-abc123/1.html")
    take_back(archive, 1764000000)
    assert made() == (0, ["2 records, 2 pages written, 0 as they were: site/index.html"])
    assert "The rollback" in page("1764000000-abc123/1.html")
    assert "/seconds_to_safe" in page("1764000000-abc123/rollback-1.html")


def test_hostile_texts_stay_text_everywhere(archive: Archive):
    keep(archive, 1764000000, triggered_by=HOSTILE, override_reasons=[HOSTILE])
    assert made()[0] == 0
    for name in ("index.html", "1764000000-abc123/1.html"):
        parsed = Parsed(page(name))
        assert "img" not in parsed.tags and parsed.tags.count("script") <= 1 and "&lt;img src=x" in page(name)


@pytest.mark.parametrize("place", ["../1.json", "1764000900-abc123/../../1.json", "../../../etc/x", "a/<b>.json"])
def test_no_page_is_written_where_a_forged_record_points_to(archive: Archive, place: str):
    link = {"previous_record_sha256": "0" * 64, "previous_record_location": archive.bucket.url(f"records/production/{place}")}
    archive.keep_record({**years.deployed(years.START), **link})
    before = sorted(Path().iterdir())
    code, lines = made()
    assert (code, lines[-1]) == (1, "1 records, 1 pages written, 0 as they were: site/index.html"), lines
    assert sorted(Path().iterdir()) == sorted([*before, OUT])
    assert "missing: " in lines[0] and "0000000000" in page("index.html") and "<b>.json" not in page("index.html")


def test_an_empty_archive_knows_no_measure_and_says_so(archive: Archive):
    assert made() == (0, ["0 records, 0 pages written, 0 as they were: site/index.html"])
    answers = re.findall(r'<li class="answer"><h2>(.*?)</h2><p class="headline">(.*?)</p>', page("index.html"))
    assert [text for _, text in answers] == ["not known"] * 5 and len(answers) == 5


def test_the_measures_on_the_page_are_those_of_the_records(archive: Archive, s3_server: Stores):
    from azora_ci.record import dora

    kept = years.chained(list(years.history(60)), archive.bucket.name)
    years.keep(s3_server, archive.bucket.name, kept)
    made("--days", "36500")
    found = dora.deliveries(item.document for item in kept)
    failed, reached = sum(bool(item.failure) for item in found), sum(item.reached_at is not None for item in found)
    assert f"{failed} of {reached} deployments that reached users" in page("index.html")
    assert json.loads((OUT / f"{kept[0].document['deployment_id']}/1.json").read_bytes()) == kept[0].document


@pytest.mark.parametrize("name", ["frequency", "lead", "failure", "recovery", "rework"])
def test_every_measure_says_how_it_is_computed(archive: Archive, name: str):
    from markupsafe import escape

    from azora_ci.record import dora

    made()
    title, definition = dora.MEASURES[name]
    assert f"<h3>{title}</h3>" in page("index.html") and str(escape(definition)) in page("index.html")
