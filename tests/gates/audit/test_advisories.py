"""The registry's answers, good and bad, from a server that speaks its protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from azora_ci.core.clock import Clock
from azora_ci.core.documents import Limits
from azora_ci.core.errors import UnreachableError
from azora_ci.gates.audit import advisories
from azora_ci.gates.audit.advisories import Registry
from azora_ci.gates.audit.lock_files import LockFile
from azora_ci.gates.audit.packages import Locked, Package
from azora_ci.rehearsal.standins.advisories import BULK, AdvisoryServer

LODASH: dict[str, Any] = {
    "id": 1106913,
    "url": "https://github.com/advisories/GHSA-jf85-cpcp-j695",
    "title": "Prototype Pollution in lodash",
    "severity": "critical",
    "vulnerable_versions": "<4.17.12",
    "cwe": ["CWE-20"],
    "cvss": {"score": 9.1, "vectorString": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:H/A:H"},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdvisoryServer]:
    with AdvisoryServer(tmp_path / "advisories.json") as server:
        server.write(advisories={"lodash": [LODASH]})
        yield server


def locked(*packages: tuple[str, str], path: str = "package-lock.json") -> LockFile:
    return LockFile(path, "npm", Locked(frozenset(Package(*package) for package in packages)))


def registry(server: AdvisoryServer, lines: list[str] | None = None) -> Registry:
    return Registry(server.url, Clock(), (lines if lines is not None else []).append, pause=0.01)


def test_only_vulnerable_versions_are_findings_and_each_names_its_lock_file(server):
    files = [
        locked(("lodash", "4.17.11"), ("lodash", "4.17.21"), ("ms", "2.0.0")),
        locked(("lodash", "4.17.4"), path="web/package-lock.json"),
    ]
    found = registry(server).findings(files)
    assert [(finding.version, finding.lock_file) for finding in found] == [
        ("4.17.11", "package-lock.json"),
        ("4.17.4", "web/package-lock.json"),
    ]
    assert found[0].document() == {
        "package": "lodash",
        "version": "4.17.11",
        "severity": "critical",
        "id": "GHSA-jf85-cpcp-j695",
        "title": "Prototype Pollution in lodash",
        "url": "https://github.com/advisories/GHSA-jf85-cpcp-j695",
        "fixed_in": "4.17.12",
        "lock_file": "package-lock.json",
    }
    assert server.asked == [(BULK, {"lodash": ["4.17.11", "4.17.21", "4.17.4"], "ms": ["2.0.0"]})]


def test_many_packages_are_asked_in_parts(server, monkeypatch):
    monkeypatch.setattr(advisories, "NAMES_PER_REQUEST", 2)
    assert len(registry(server).findings([locked(("a", "1.0.0"), ("b", "1.0.0"), ("lodash", "4.0.0"))])) == 1
    assert [sorted(question) for _, question in server.asked] == [["a", "b"], ["lodash"]]


def test_no_package_is_no_question(server):
    assert registry(server).findings([locked()]) == []
    assert server.asked == []


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_registry_is_asked_again(server, status):
    server.write(advisories={"lodash": [LODASH]}, answers=[{"status": status, "times": 2}])
    lines: list[str] = []
    assert len(registry(server, lines).findings([locked(("lodash", "4.0.0"))])) == 1
    assert len(server.asked) == 3
    assert f"HTTP {status}" in lines[0]


@pytest.mark.parametrize("answer", [{"status": 503, "times": 99}, {"status": 404}, {"status": 410}, {"status": 302}])
def test_no_answer_is_no_pass(server, answer):
    server.write(answers=[answer])
    with pytest.raises(UnreachableError) as caught:
        registry(server).findings([locked(("lodash", "4.0.0"))])
    assert f"HTTP {answer['status']}" in caught.value.what
    assert len(server.asked) == (advisories.ATTEMPTS if answer["status"] == 503 else 1)


def test_nobody_there_is_no_pass():
    with pytest.raises(UnreachableError):
        Registry("http://127.0.0.1:1", Clock(), [].append, pause=0.01).findings([locked(("lodash", "4.0.0"))])


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[",
        "[]",
        "[" * 100_000,
        "<html>",
        '{"lodash": {}}',
        '{"lodash": [{}]}',
        '{"lodash": ["x"]}',
        '{"lodash": [{"vulnerable_versions": "*"}]}',
    ],
)
def test_an_answer_of_another_shape_is_no_pass(server, body):
    server.write(answers=[{"status": 200, "body": body}])
    with pytest.raises(UnreachableError):
        registry(server).findings([locked(("lodash", "4.0.0"))])


def test_an_endless_answer_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(advisories, "LIMITS", Limits(size=1000))
    server.write(answers=[{"status": 200, "body": "x" * 2000}])
    with pytest.raises(UnreachableError, match="more than 1000 bytes"):
        registry(server).findings([locked(("lodash", "4.0.0"))])


def test_an_unknown_severity_is_taken_for_the_worst(server):
    server.write(advisories={"lodash": [LODASH | {"severity": "apocalyptic", "url": "", "title": "two\nlines"}]})
    (finding,) = registry(server).findings([locked(("lodash", "4.0.0"))])
    assert (finding.severity, finding.id, finding.title) == ("critical", "1106913", "two lines")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*LODASH, "lodash"]), inner, max_size=7),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.dictionaries(st.just("lodash"), json_values) | json_values)
def test_no_answer_ends_in_a_bug(server, document):
    server.write(answers=[{"status": 200, "body": document, "times": 99}])
    try:
        found = registry(server).findings([locked(("lodash", "4.0.0"))])
    except UnreachableError:
        return
    assert all(finding.package == "lodash" for finding in found)
