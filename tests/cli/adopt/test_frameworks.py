"""``adopt`` names the health contract first, in the words of the framework that it finds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from azora_ci.cli.adopt import frameworks


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"package.json": {"dependencies": {"express": "^4"}}}, {"express": "package.json"}),
        (
            {"package.json": {"dependencies": {"@nestjs/core": "1", "express": "4"}}, "api/package.json": {"dependencies": {"hono": "4"}}},
            {"@nestjs/core": "package.json", "hono": "api/package.json"},
        ),
        ({"apps/web/package.json": {"dependencies": {"next": "15", "react": "19"}}}, {"next": "apps/web/package.json"}),
        ({"package.json": {"devDependencies": {"express": "^4"}}}, {}),
        ({"node_modules/koa/package.json": {"dependencies": {"express": "^4"}}}, {}),
        ({"requirements.txt": "# web\nDjango==5.2 ; python_version > '3.9'\ndjango-cors\n"}, {"django": "requirements.txt"}),
        ({"requirements-web.txt": "fastapi[standard]>=0.110"}, {"fastapi": "requirements-web.txt"}),
        ({"requirements.txt": "django-cors-headers\n-r other.txt\n"}, {}),
        ({"pyproject.toml": '[project]\ndependencies = ["FastAPI>=0.110"]'}, {"fastapi": "pyproject.toml"}),
        ({"pyproject.toml": '[tool.poetry.dependencies]\nDjango = "^5"'}, {"django": "pyproject.toml"}),
        ({"package.json": "\ufeff" + json.dumps({"dependencies": {"koa": "2"}})}, {"koa": "package.json"}),
        ({"package.json": {"dependencies": None}, "pyproject.toml": "[project]\ndependencies = 7"}, {}),
        ({"package.json": "{", "pyproject.toml": "=", "requirements.txt": "\x00"}, {}),
        ({"package.json": ["express"], "pyproject.toml": 'project = "x"'}, {}),
    ],
)
def test_frameworks_are_found_where_they_are_depended_on(tmp_path, files, expected):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    assert frameworks.discover(tmp_path) == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_a_folder_of_another_user_is_skipped(tmp_path, mode):
    (tmp_path / "pgdata/base").mkdir(parents=True)
    (tmp_path / "web").mkdir()
    (tmp_path / "web/package.json").write_text('{"dependencies": {"koa": "2"}}')
    (tmp_path / "pgdata").chmod(mode)
    try:
        assert frameworks.discover(tmp_path) == {"koa": "web/package.json"}
    finally:
        (tmp_path / "pgdata").chmod(0o700)


def test_the_contract_is_named_with_and_without_a_framework(tmp_path: Path):
    text = frameworks.advice(tmp_path)
    assert '{"status": "healthy", "version": "1.2.3"}' in text
    assert "python -m azora_ci health" in text
    (tmp_path / "package.json").write_text('{"dependencies": {"fastify": "5"}}')
    text = frameworks.advice(tmp_path)
    assert "Fastify (found in package.json):" in text
    assert 'app.get("/health", async () =>' in text
    assert all(len(line) <= 140 for name, snippet in frameworks.FRAMEWORKS.values() for line in snippet.splitlines()), "fits a terminal"
