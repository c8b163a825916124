"""Files merge field by field, as the Compose Specification says."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.cli.adopt.compose import document
from azora_ci.cli.adopt.compose.merge import merge, resolved
from azora_ci.core.errors import BadInputError


def merged(tmp_path: Path, base: str, override: str) -> dict:
    result = {}
    for text in (base, override):
        path = tmp_path / "compose.yml"
        path.write_text(f"services:\n  api:\n    {text}\n")
        for loaded in document.read(path):
            result = merge(result, loaded)
    return result["services"]["api"]


@pytest.mark.parametrize(
    ("base", "override", "result"),
    [
        ("image: a", "image: b", {"image": "b"}),
        ("image: a", "command: b", {"image": "a", "command": "b"}),
        ("image: a", "image:", {"image": "a"}),
        ("command: [a, b]", "command: c", {"command": "c"}),
        ("command: [a, b]", "command: [c]", {"command": ["c"]}),
        ("entrypoint: a", "entrypoint: [b]", {"entrypoint": ["b"]}),
        ("healthcheck: {test: [CMD, a], retries: 3}", "healthcheck: {test: b}", {"healthcheck": {"test": "b", "retries": 3}}),
        ("environment: {A: 1, B: 2}", "environment: [B=3, C]", {"environment": ["A=1", "B=3", "C"]}),
        ("environment: [A=1]", "environment: {A: true, N: null}", {"environment": ["A=true", "N"]}),
        ("environment: {A: 1, B: 2}", "environment: {A: !reset null}", {"environment": ["B=2"]}),
        ("environment: {A: 1, B: 2}", "environment: !override {C: 3}", {"environment": {"C": 3}}),
        ("ports: ['80:80']", "ports: ['443:443']", {"ports": ["80:80", "443:443"]}),
        ("ports: ['80:80']", "ports: ['80:80', '80:80/udp']", {"ports": ["80:80", "80:80/udp"]}),
        ("ports: ['80:80']", "ports: !override ['90:90']", {"ports": ["90:90"]}),
        ("ports: ['80:80']", "ports: !reset []", {}),
        ("ports: ['80:80']\n    image: a", "ports: !reset null", {"image": "a"}),
        ("volumes: [a:/data, b:/b]", "volumes: ['c:/data:ro']", {"volumes": ["c:/data:ro", "b:/b"]}),
        (
            "volumes: [a:/data]",
            "volumes: [{type: volume, source: c, target: /data}]",
            {"volumes": [{"type": "volume", "source": "c", "target": "/data"}]},
        ),
        ("build: .", "build: {target: production}", {"build": {"context": ".", "target": "production"}}),
        ("build: {context: a, args: {X: 1, Y: 2}}", "build: {args: [X=3]}", {"build": {"context": "a", "args": ["X=3", "Y=2"]}}),
        ("build: .", "build: !reset null", {}),
        ("build: .", "build: null", {"build": "."}),
        (
            "depends_on: [db]",
            "depends_on: {cache: {condition: service_healthy}}",
            {"depends_on": {"db": None, "cache": {"condition": "service_healthy"}}},
        ),
        ("env_file: .env", "env_file: [.env, b.env]", {"env_file": [".env", "b.env"]}),
        ("labels: [a=1]", "labels: {a: 2}", {"labels": ["a=2"]}),
        ("networks: [a]", "networks: {b: {aliases: [x]}}", {"networks": {"a": None, "b": {"aliases": ["x"]}}}),
        (
            "deploy: {replicas: 1, resources: {limits: {cpus: '1'}}}",
            "deploy: {replicas: 2}",
            {"deploy": {"replicas": 2, "resources": {"limits": {"cpus": "1"}}}},
        ),
        ("profiles: [a]", "profiles: [a, b]", {"profiles": ["a", "b"]}),
        ("expose: ['1']", "expose: ['1', '2']", {"expose": ["1", "2"]}),
        ("cap_drop: [ALL]", "cap_drop: [ALL]", {"cap_drop": ["ALL"]}),
        ("x-own: {a: 1}", "x-own: {b: 2}", {"x-own": {"a": 1, "b": 2}}),
    ],
)
def test_a_field_is_merged_as_compose_merges_it(tmp_path, base, override, result):
    assert merged(tmp_path, base, override) == result


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("22:22", "22:22"),
        ("2024-01-01", "2024-01-01"),
        ("0755", "0755"),
        ("1.5", 1.5),
        ("12", 12),
        ("1" * 5000, "1" * 5000),
        ("~", None),
        ("=", "="),
        ("!unknown x", "x"),
        ("!override 3", document.Override(3)),
        ("!override [a]", document.Override(["a"])),
    ],
)
def test_a_scalar_is_what_compose_takes_it_for(tmp_path, text, value):
    path = tmp_path / "compose.yml"
    path.write_text(f"a: {text}\n")
    assert document.read(path) == [{"a": value}]


@pytest.mark.parametrize(
    "content",
    [
        b"a: [",
        b"- a",
        b"a: &a [*a]",
        b"a: \xff",
        b"a: b\n" * 200_000,
        b'a: "\\ud800"',
        b"[" * 5000,
        b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + b"".join(b"b%d: &b%d [%s]\n" % (n, n, b",".join([b"*a" if n == 0 else b"*b%d" % (n - 1)] * 10)) for n in range(8)),
        b"? {a: b}\n: c",
    ],
)
def test_what_is_broken_or_endless_is_named_and_not_read(tmp_path, content):
    path = tmp_path / "compose.yml"
    path.write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        document.read(path)
    assert caught.value.where == str(path)


def test_tags_that_have_nothing_to_replace_leave_their_value():
    assert resolved({"a": document.Override([1, document.Reset()]), "b": document.Reset()}) == {"a": [1]}
