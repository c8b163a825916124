"""Whatever compose files say: adopting ends with a configuration that loads, and no secret's value is in it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from azora_ci.cli.adopt import deploy_toml, programs
from azora_ci.cli.adopt.discover import discover
from azora_ci.core import config
from azora_ci.core.errors import BadInputError

NAMES = st.sampled_from(["web", "web-app", "web_app", "worker", "cron", "db", "сервер", "A.B", "_", "1", ""])
TEXTS = st.sampled_from(
    [
        "80:3000",
        "3000-3005",
        "${X}",
        "${X:-3000}",
        "$$",
        "a:/b:ro",
        "./a:/b",
        "..",
        ".",
        "../..",
        "no",
        "1.5g",
        "30s",
        "web",
        "node",
        "0",
        "-1",
        "[",
        "'",
        '"',
        "http://web:80/x",
        "curl localhost:80/x",
        "postgres://u:not-to-be-copied@db/x",
        "service_completed_successfully",
    ]
)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=8)  # YAML has no control characters
SCALARS = TEXTS | TEXT | st.integers(-10, 100_000) | st.sampled_from([None, True, False, 1.5, 1e300, 0.0])
ANYTHING = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(NAMES | TEXTS, SCALARS | st.lists(SCALARS, max_size=2), max_size=3)
VARIABLES = st.sampled_from(
    ["PORT", "HOST", "VERSION", "PGPASSWORD", "database__password", "_TRACE", "GITHUB_X_TOKEN", "PROD_KEY", "A", "1", "a.b"]
)
BUILD = st.fixed_dictionaries(
    {"context": st.sampled_from([".", "app", "${X:-.}", "..", "https://x.example/x.git"])},
    optional={"target": SCALARS, "args": ANYTHING, "dockerfile": SCALARS, "platforms": ANYTHING},
)
FIELDS = {
    "image": SCALARS,
    "environment": st.dictionaries(VARIABLES, SCALARS, max_size=5) | st.lists(VARIABLES | TEXTS, max_size=3),
    "ports": st.lists(SCALARS | st.fixed_dictionaries({"target": SCALARS}), max_size=3),
    "volumes": st.lists(SCALARS | st.fixed_dictionaries({"type": SCALARS, "source": SCALARS, "target": SCALARS}), max_size=3),
    "depends_on": st.lists(NAMES, max_size=3) | st.dictionaries(NAMES, st.fixed_dictionaries({"condition": SCALARS}), max_size=2),
    "healthcheck": st.fixed_dictionaries({"test": ANYTHING}),
    "deploy": st.fixed_dictionaries({"replicas": SCALARS}),
    "extends": NAMES,
} | dict.fromkeys(
    [
        "command",
        "entrypoint",
        "env_file",
        "expose",
        "restart",
        "profiles",
        "labels",
        "networks",
        "mem_limit",
        "stop_grace_period",
        "cap_drop",
        "read_only",
        "platform",
        "scale",
        "secrets",
    ],
    ANYTHING,
)
SERVICES = st.fixed_dictionaries({"build": st.just(".") | BUILD | ANYTHING}, optional=FIELDS)
WRONG = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, ANYTHING))
DOCUMENTS = st.fixed_dictionaries(
    {"services": st.dictionaries(NAMES, SERVICES | SERVICES | SERVICES | WRONG, min_size=2, max_size=4)},
    optional={"name": SCALARS, "volumes": st.dictionaries(NAMES | TEXTS, ANYTHING, max_size=2), "include": ANYTHING},
)


@pytest.fixture(autouse=True)
def without_programs(monkeypatch):
    """Nothing is asked of git and docker here: starting them for each of a thousand documents would be all that takes time."""
    monkeypatch.setattr(programs, "run", lambda argv: None)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(base=DOCUMENTS, override=st.none() | DOCUMENTS)
@example(
    base={"services": {"web-app": {"build": "."}, "web_app": {"build": "."}, "сервер": {"build": "."}, "服务": {"build": "."}}},
    override=None,
)
@example(base={"services": {"web": {"build": ".", "image": "http://web:80/x"}}}, override=None)
def test_what_is_written_loads(base, override):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "docker-compose.yml").write_text(json.dumps(base, ensure_ascii=False))  # JSON is YAML
        if override is not None:
            (folder / "docker-compose.override.yml").write_text(json.dumps(override, ensure_ascii=False))
        try:
            text = deploy_toml.render(discover(folder))
        except BadInputError as error:
            assert "docker-compose" in error.where
            return
        path = folder / "deploy-production.toml"
        path.write_text(text)
        assert "not-to-be-copied" not in text
        config.load(path)
